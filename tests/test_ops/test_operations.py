import ctypes
import subprocess

import pytest
import torch

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.ops.peripheral_conv2d import native, native_build, operations
from pelk_mm.ops.peripheral_conv2d.backends import BACKENDS
from pelk_mm.ops.peripheral_conv2d.operations import Operations, executed_operations

# (N, C, H, W), K, centre: small and large maps, several bands and chunks, cells out of reach, odd widths of cells.
CASES = [((1, 2, 7, 7), 13, 5), ((2, 3, 14, 14), 47, 5), ((1, 2, 56, 56), 51, 5), ((1, 1, 40, 100), 33, 5),
         ((1, 2, 1, 3), 5, 1), ((1, 1, 9, 130), 101, 7), ((1, 1, 1100, 70), 51, 1)]

# Statements of native.cpp and how many operations of an element they are, on vectors of L elements.
COUNTED = {
    'store(out + i, load(a + i) + load(b + i));': 'additions += Simd<T>::size;',
    'acc[i][j] += r[j] * weights[i];': 'multiply_adds += L;',
    'acc[j] += load(upper + in_levels[j]) + load(upper + in_levels[j] + (int64_t(1) << level));': 'additions += 2 * L;',
    'acc[j] += load(from + in_t[j]);': 'additions += L;',
}


def count(backend, shape, grid):
    return executed_operations(backend, torch.empty(shape, device='meta'), grid)


@pytest.fixture(scope='module')
def counting_library(tmp_path_factory):
    """The native backend with AVX-512's vectors, on any machine, and with counters."""
    source = native_build.SOURCE.read_text()
    for statement, counter in COUNTED.items():
        assert source.count(statement) == 1, f'native.cpp has changed: {statement}'
        source = source.replace(statement, f'{{ {statement} {counter} }}')
    for name in ('bfloat16', 'float16'):
        source = source.replace(f'PELK_EXPORT({name}, {name})', '')
    # Before their first use.
    source = '#include <cstdint>\nextern "C" { int64_t multiply_adds = 0, additions = 0; }\n' + source
    folder = tmp_path_factory.mktemp('native')
    (folder / 'counting.cpp').write_text(source)
    command = [*native_build.find_compiler(), 'counting.cpp', '-o', 'counting.so', '-std=c++17', '-fPIC', '-shared',
               '-D__AVX512F__', '-O1', '-w']  # yapf: disable
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / 'counting.so'))


@pytest.mark.parametrize(('shape', 'kernel_size', 'center'), CASES)
def test_native_executes_what_is_counted(shape, kernel_size, center, counting_library, monkeypatch):
    monkeypatch.setattr(native, 'load_library', lambda double: counting_library)
    counters = [ctypes.c_int64.in_dll(counting_library, name) for name in ('multiply_adds', 'additions')]
    for counter in counters:
        counter.value = 0
    grid = SharingGrid.from_kernel_size(kernel_size, center)
    x, theta = torch.rand(shape), torch.rand(shape[1], grid.num_cells, grid.num_cells)
    y = native.forward(x, theta, None, grid)
    torch.testing.assert_close(y, peripheral_conv2d(x, theta, grid, backend='reference'), rtol=1e-5, atol=1e-5)
    assert count('native', shape, grid) == Operations(*(counter.value for counter in counters))


def test_all_backends_by_hand():
    # Three cells of 2, 1 and 2 taps on a map of 4 x 3: all nine reach it.
    shape, grid = (1, 1, 4, 3), SharingGrid.from_half((2, 1))
    assert count('reference', shape, grid) == Operations(25 * 12)
    # Pairs of the 8 rows that windows cover; then pairs of columns, cut at the border, twice; then what is above them.
    assert count('box_sums', shape, grid) == Operations(9 * 12, 7 * 3 + 4 * (2 + 2) + 4 * (3 + 2 * 3))
    # The same in rows of one whole vector; of the pairs of rows only the four with two rows on the map.
    assert count('native', shape, grid) == Operations(9 * 4 * 16, 4 * 16 + 4 * 16 * (2 + 1 + 2))
    # One tile: 16 strips of two rows, 16 x 16 columns, three products for each in fp32.
    assert count('triton', shape, grid) == Operations(3 * 3 * 2 * 16**3, (3 + 2 + 3) * 16**2 + 3 * 2 * 16**2)


@pytest.mark.parametrize('backend', BACKENDS)
def test_every_backend_is_counted(backend):
    grid = SharingGrid.from_kernel_size(51)
    one, six = count(backend, (1, 1, 56, 56), grid), count(backend, (1, 6, 56, 56), grid)
    assert one.multiply_adds > 0
    assert six == one * 6
    assert one + one == one * 2
    assert count(backend, (0, 6, 56, 56), grid) == Operations()


def test_fast_backends_execute_a_fraction_of_the_dense_form():
    grid = SharingGrid.from_kernel_size(51)
    dense = 2601 * 56 * 56
    for backend in ('native', 'box_sums'):
        executed = count(backend, (1, 1, 56, 56), grid)
        assert executed.multiply_adds == pytest.approx(169 * 56 * 56, rel=0.1)
        assert executed.multiply_adds + executed.additions < 0.08 * dense


@pytest.mark.parametrize('choice', ['native', 'box_sums', 'reference'])
def test_the_automatic_choice_of_a_cpu(choice, monkeypatch):
    offered = []
    monkeypatch.setattr(operations, 'cheapest', lambda names, function, x, grid: offered.append(
        (names, function, tuple(x.shape))) or choice)
    grid = SharingGrid.from_kernel_size(51)
    assert count('auto', (1, 46, 56, 56), grid) == count(choice, (1, 46, 56, 56), grid)
    assert offered == [(('native', 'box_sums', 'reference'), 'forward', (1, 46, 56, 56))]


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be .*'box_sums', 'native', 'reference', 'triton'.*got 'cuda'"):
        count('cuda', (1, 1, 4, 4), SharingGrid.dense(3))
