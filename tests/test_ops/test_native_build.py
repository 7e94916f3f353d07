"""Building the native backend: cached, safe to do twice at a time, and never a hard requirement."""

import itertools
import os
import warnings

import pytest

from pelk_mm.ops.peripheral_conv2d import native_build
from pelk_mm.testing.forks import ForkServer

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Start a script in a process of its own; what it returns waits for the exit code and what is printed."""
    folder = tmp_path_factory.mktemp('scripts')
    numbers = itertools.count()
    server = ForkServer('torch._dynamo', 'pelk_mm.testing.benchmark', 'pelk_mm.testing.cases',
                        'pelk_mm.testing.tolerances')

    def start(script, **environment):
        path = folder / f'{next(numbers)}.py'
        path.write_text(script)
        process = server.start([path], path.with_suffix('.log'), environment)
        return lambda: (process.wait(300), path.with_suffix('.log').read_text())

    yield start
    server.close()


def test_processes_that_build_at_the_same_time_and_a_truncated_library(start, tmp_path):
    """Loading what is truncated would end the process with SIGBUS, now and in every later run."""
    environment = dict(PELK_MM_CACHE=str(tmp_path), PELK_MM_CXXFLAGS='-O0')
    for processes in (2, 1):
        for end in [start(CALL, **environment) for _ in range(processes)]:
            code, output = end()
            assert (code, output.split()) == (0, ['0', 'None']), output
        library, = tmp_path.iterdir()
        assert library.suffix == '.so'
        assert native_build._is_undamaged(library)
        library.write_bytes(damaged(library.read_bytes())['truncated'])


def test_without_a_compiler_it_runs_slower_and_says_so_once(start, tmp_path):
    code, output = start(CALL, PELK_MM_CACHE=str(tmp_path), CXX='no-such-compiler')()
    assert code == 0, output
    assert output.startswith('1 ')
    assert 'no-such-compiler' in output


def test_compiler_errors_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv('PELK_MM_CACHE', str(tmp_path))
    monkeypatch.setenv('PELK_MM_CXXFLAGS', '--no-such-flag')
    with pytest.raises(native_build.BuildError, match='no-such-flag'):
        native_build._build(double=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A cache of its own, and next to nothing to compile."""
    cache, source = tmp_path / 'cache', tmp_path / 'source.cpp'
    source.write_text('extern "C" int pelk() { return 42; }')
    monkeypatch.setattr(native_build, 'SOURCE', source)
    monkeypatch.setenv('PELK_MM_CACHE', str(cache))
    monkeypatch.setenv('PELK_MM_CXXFLAGS', '-O0')
    return cache


def test_flags_dtypes_and_every_source_make_libraries_of_their_own(quick, monkeypatch):
    header = native_build.SOURCE.with_name('answer.h')
    header.write_text('constexpr int ANSWER = 42;')
    native_build.SOURCE.write_text('#include "answer.h"\nextern "C" int pelk() { return ANSWER; }')
    first = native_build._build(double=False)
    assert native_build._build(double=False) == first
    header.write_text('constexpr int ANSWER = 43;')
    changed = native_build._build(double=False)
    assert [native_build.ctypes.CDLL(str(library)).pelk() for library in (first, changed)] == [42, 43]
    native_build._build(double=True)
    monkeypatch.setenv('PELK_MM_CXXFLAGS', '-O0 -DX')
    native_build._build(double=True)
    assert len(list(quick.iterdir())) == 4


def damaged(content):
    middle = len(content) // 2
    return dict(empty=b'', short=content[:9], truncated=content[:middle], longer=content + b'x',
                a_byte=content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:])


def test_damaged_libraries_are_built_again(quick):
    library = native_build._build(double=False)
    content = library.read_bytes()
    for name, spoilt in damaged(content).items():
        library.write_bytes(spoilt)
        assert native_build._build(double=False) == library
        assert native_build._is_undamaged(library), name
    before = library.stat().st_mtime_ns
    native_build._build(double=False)
    assert library.stat().st_mtime_ns == before, 'what is undamaged is kept'
    # Not before: what a process has loaded must not be overwritten in place.
    assert native_build.ctypes.CDLL(str(library)).pelk() == 42
    library.unlink()
    library.mkdir()
    with pytest.raises(native_build.BuildError, match='PELK_MM_CACHE.*directory'):
        native_build._build(double=False)


@pytest.mark.parametrize('variable, value, words', [
    ('CXX', 'g++ "-O2', ['CXX', 'No closing quotation', 'g++ "-O2']),
    ('PELK_MM_CXXFLAGS', "-DX='1", ['PELK_MM_CXXFLAGS', 'No closing quotation']),
    ('PELK_MM_CXXFLAGS', '-D\\', ['PELK_MM_CXXFLAGS', 'No escaped character']),
    ('CXX', '""', ['C++ compiler', 'does not run']),
    ('CXX', 'true', ['true', 'wrote no library']),
    ('CXX', '/etc', ['/etc', 'does not run']),
    ('PELK_MM_CACHE', '~no-such-user/x', ['PELK_MM_CACHE', '~no-such-user/x']),
])
def test_wrong_variables_are_named_and_another_backend_runs(quick, monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    native_build.load_library.cache_clear()
    try:
        with pytest.warns(UserWarning, match='native CPU backend') as caught:
            failure = native_build.load_library(False)
    finally:
        native_build.load_library.cache_clear()
    assert isinstance(failure, native_build.BuildError)
    assert len(caught) == 1
    assert all(word in str(failure) for word in words), failure


def compiler_script(path, first):
    path.write_bytes(b'#!/bin/sh\n' + first + b'\nexec c++ "$@"\n')
    path.chmod(0o755)
    return path


def test_compilers_that_speak_no_utf8(quick, monkeypatch, tmp_path):
    message = b"printf 'caf\\351\\n'; printf 'erreur \\253 x \\273\\n' >&2"
    monkeypatch.setenv('CXX', str(compiler_script(tmp_path / 'speaks', message)))
    assert native_build._build(double=False).is_file()
    monkeypatch.setenv('CXX', str(compiler_script(tmp_path / 'fails', message + b'\n[ "$1" = --version ] || exit 1')))
    with pytest.raises(native_build.BuildError, match='erreur'):
        native_build._build(double=False)


def test_compilers_may_be_named_relative_to_the_folder_and_the_home(quick, monkeypatch, tmp_path):
    compiler_script(tmp_path / 'mine', b'')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    names = set()
    for compiler in ('./mine', '~/mine', ' c++ ', '', '  '):
        monkeypatch.setenv('CXX', compiler)
        names.add(native_build._build(double=False).name)
    assert len(names) == 3


def test_the_cache_may_be_in_the_home(quick, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('PELK_MM_CACHE', '~/x')
    assert native_build._build(double=False).parent == tmp_path / 'x'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PELK_MM_CACHE', 'y')
    assert native_build._build(double=False).parent == tmp_path / 'y'


@pytest.mark.parametrize('home', ['none', 'read only', 'a file', 'root'])
def test_without_a_home_temporary_files_are_the_cache(quick, monkeypatch, tmp_path, home):
    (tmp_path / 'file').touch()
    monkeypatch.delenv('PELK_MM_CACHE')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(native_build.tempfile, 'gettempdir', lambda: str(tmp_path))
    if home == 'none':
        monkeypatch.delenv('HOME')
        monkeypatch.setattr('pwd.getpwuid', lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    else:
        monkeypatch.setenv('HOME', {'read only': '/proc', 'a file': str(tmp_path / 'file'), 'root': '/dev/null'}[home])
    library = native_build._build(double=False)
    assert library.parent == tmp_path / f'pelk_mm-{os.getuid()}'
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert native_build._build(double=False) == library


def test_a_folder_of_somebody_else_among_temporary_files_is_not_used(monkeypatch, tmp_path):
    monkeypatch.delenv('PELK_MM_CACHE', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(native_build.tempfile, 'gettempdir', lambda: str(tmp_path))
    assert len(native_build.cache_dirs()) == 2
    monkeypatch.setattr(native_build.os, 'getuid', lambda: 12345)
    (tmp_path / 'pelk_mm-12345').mkdir()
    assert native_build.cache_dirs() == [tmp_path / '.cache' / 'pelk_mm']


def test_a_cache_that_cannot_be_used_is_named(quick, monkeypatch):
    quick.touch()
    with pytest.raises(native_build.BuildError, match='PELK_MM_CACHE.*File exists'):
        native_build._build(double=False)
    monkeypatch.setenv('PELK_MM_CACHE', '/proc/pelk_mm')
    with pytest.raises(native_build.BuildError, match='PELK_MM_CACHE.*/proc/pelk_mm'):
        native_build._build(double=False)


def test_scratch_memory_is_not_assumed_to_be_zero(start, tmp_path):
    """Every buffer filled with NaN first; also the narrowest vectors, which other processors have."""
    script = '''
import torch
from pelk_mm.testing.cases import CASES, expected, run
from pelk_mm.testing.tolerances import assert_close
for case in CASES:
    if case.mean == 0:
        inputs = case.make()
        for actual, right in zip(run(inputs, case.grid, 'native'), expected(inputs, case.grid)):
            assert_close(actual, right, case.id)
'''
    for flags in ('', ' -mno-avx512f', ' -mno-avx') if os.uname().machine == 'x86_64' else ('', ):
        code, output = start(script, PELK_MM_CACHE=str(tmp_path), PELK_MM_CXXFLAGS=f'-O1 -DPELK_POISON{flags}')()
        assert code == 0, f'{flags}: {output}'


def test_without_memory_for_scratch_the_process_lives(start, tmp_path):
    """An exception that left an OpenMP region would end it, whichever of the buffers of whichever thread is missing."""
    script = '''
import ctypes, torch
from pelk_mm.ops.peripheral_conv2d import native
from pelk_mm.ops.peripheral_conv2d.native_build import load_library
from pelk_mm.testing.cases import Case, GRIDS
torch.set_num_threads(3)
# With few channels, vectors hold columns.
for layout, dtype, channels in (('contiguous', torch.float32, 24), ('channels_last', torch.bfloat16, 24),
                                ('contiguous', torch.float64, 3)):
    left = ctypes.c_int64.in_dll(load_library(dtype == torch.float64), 'pelk_buffers_left')
    grid = GRIDS['k13']
    x, theta, bias, grad = Case('memory', (4, channels, 15, 17), grid, layout).make(dtype)
    for call in (lambda: native.forward(x, theta, bias, grid), lambda: native.theta_grad(x, grad, grid)):
        left.value = 1000
        right = call()
        used = 1000 - left.value
        assert used >= 10
        for number in range(used):
            left.value = number
            try:
                call()
            except MemoryError as error:
                assert f'(4, {channels}, 15, 17)' in str(error)
            else:
                raise AssertionError(f'{number} of {used} buffers were enough')
        left.value = used
        assert torch.equal(call(), right)
'''
    code, output = start(script, PELK_MM_CACHE=str(tmp_path), PELK_MM_CXXFLAGS='-O1 -DPELK_FAIL_ALLOCATIONS')()
    assert code == 0, output


@pytest.mark.parametrize('backend', ['native', 'box_sums'])
@pytest.mark.parametrize('shape, kernel', [((1, 8, 512, 512), 151), ((8, 46, 56, 56), 51), ((2, 374, 7, 7), 13)],
                         ids=str)
def test_memory(start, backend, shape, kernel):
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
    code, output = start(script)()
    assert code == 0, output


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
