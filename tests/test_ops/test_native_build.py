"""Building the native backend: cached, safe to do twice at a time, and never a hard requirement."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from pelk_mm.ops.peripheral_conv2d import native_build

CALL = '''
import warnings, torch
from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
grid = SharingGrid.from_kernel_size(13)
x, theta = torch.randn(1, 2, 9, 9), torch.randn(2, 9, 9)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    out = [peripheral_conv2d(x, theta, grid) for _ in range(3)][0]
right = peripheral_conv2d(x, theta, grid, backend='reference')
assert torch.allclose(out, right, atol=1e-5)
print(sum('native CPU backend' in str(w.message) for w in caught), available_backends(x, theta, grid)['native'])
'''


def call(**environment):
    return subprocess.Popen([sys.executable, '-c', CALL], env={**os.environ, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_first_use_builds_and_processes_do_not_disturb_each_other(tmp_path):
    first, second = call(PELK_MM_CACHE=str(tmp_path)), call(PELK_MM_CACHE=str(tmp_path))
    for process in (first, second):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.split() == ['0', 'None']
    assert [path.suffix for path in tmp_path.iterdir()] == ['.so']


def test_without_a_compiler_it_runs_slower_and_says_so_once(tmp_path):
    process = call(PELK_MM_CACHE=str(tmp_path), CXX='no-such-compiler')
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.startswith('1 ')
    assert 'no-such-compiler' in out


def test_compiler_errors_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv('PELK_MM_CACHE', str(tmp_path))
    monkeypatch.setenv('PELK_MM_CXXFLAGS', '--no-such-flag')
    with pytest.raises(native_build.BuildError, match='no-such-flag'):
        native_build._build(double=False)
    assert not list(tmp_path.iterdir())


def test_key_depends_on_flags(tmp_path, monkeypatch):
    monkeypatch.setenv('PELK_MM_CACHE', str(tmp_path))
    monkeypatch.setenv('PELK_MM_CXXFLAGS', '-O1')
    assert native_build._build(double=True) != native_build._build(double=True).with_name('other')
    before = set(tmp_path.iterdir())
    monkeypatch.setenv('PELK_MM_CXXFLAGS', '-O1 -DX')
    native_build._build(double=True)
    assert len(set(tmp_path.iterdir()) - before) == 1


def test_scratch_memory_is_not_assumed_to_be_zero(tmp_path):
    """Every buffer filled with NaN first; also the narrowest vectors, which other processors have."""
    script = '''
import torch
from pelk_mm.testing.cases import CASES, PRECISION_CASES, expected, run
from pelk_mm.testing.tolerances import assert_close
for case in CASES:
    if case.mean == 0:
        inputs = case.make()
        for actual, right in zip(run(inputs, case.grid, 'native'), expected(inputs, case.grid)):
            assert_close(actual, right, case.id)
'''
    for flags in ('-DPELK_POISON', '-DPELK_POISON -mno-avx512f', '-DPELK_POISON -mno-avx'):
        if os.uname().machine != 'x86_64' and '-mno' in flags:
            continue
        environment = {**os.environ, 'PELK_MM_CACHE': str(tmp_path), 'PELK_MM_CXXFLAGS': flags}
        result = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f'{flags}: {result.stderr}'


@pytest.mark.parametrize('backend', ['native', 'boxes'])
@pytest.mark.parametrize('shape, kernel', [((1, 8, 512, 512), 151), ((8, 46, 56, 56), 51), ((2, 374, 7, 7), 13)],
                         ids=str)
def test_memory(backend, shape, kernel):
    """Extra peak: forward at most the larger of 4x the input and 32 MiB; with gradients of 8x and 64 MiB."""
    script = f'''
import torch
from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.testing.benchmark import peak_memory
grid = SharingGrid.from_kernel_size({kernel})
def run(shape, backward):
    x = torch.randn(shape, requires_grad=backward)
    theta = torch.randn(shape[1], grid.num_cells, grid.num_cells, requires_grad=backward)
    grad = torch.randn(shape) if backward else None
    def call():
        out = peripheral_conv2d(x, theta, grid, backend='{backend}')
        return torch.autograd.grad(out, (x, theta), grad) if backward else out
    return peak_memory(call, 'cpu'), x.numel() * 4
for backward, times, floor in ((False, 4, 32), (True, 8, 64)):
    # The first call loads libraries and starts threads.
    run((1, {shape[1]}, 7, 7), backward)
    extra, size = run({shape}, backward)
    # The output, and the gradients, are results rather than extra memory.
    extra -= size * (1 + backward)
    print(backward, extra / 2**20, size / 2**20)
    assert extra <= max(times * size, floor << 20), (backward, extra, size)
'''
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_failure_is_a_value(monkeypatch):
    monkeypatch.setattr(native_build, '_build', lambda double: (_ for _ in ()).throw(native_build.BuildError('why')))
    native_build.load_library.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            assert str(native_build.load_library(False)) == str(native_build.load_library(False)) == 'why'
        assert len(caught) == 1
    finally:
        native_build.load_library.cache_clear()
    assert torch.get_num_threads() > 0
