import ctypes
import subprocess

import pytest
import torch

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.ops.peripheral_conv2d import native, native_build, operations
from pelk_mm.ops.peripheral_conv2d.operations import COUNTERS, Operations, executed_operations

# (N, C, H, W), K, centre, and the counted multiply-adds and additions divided by the executed ones. Small and large
# maps, several bands and chunks, cells out of reach, odd widths of cells. The loops skip cells that lie outside for a
# chunk of rows or a tile of columns, in the first two cases none, add no rows outside, and sum the halos of bands.
CASES = [((1, 2, 7, 7), 13, 5, 1, 1.012), ((1, 2, 1, 3), 5, 1, 1, 1), ((2, 3, 14, 14), 47, 5, 1.149, 0.776),
         ((1, 2, 56, 56), 51, 5, 1.096, 1.003), ((1, 1, 40, 100), 33, 5, 1.071, 1.004),
         ((1, 1, 9, 130), 101, 7, 1.478, 0.992), ((1, 1, 1100, 70), 51, 1, 1.005, 0.992),
         # Channels in vectors: tiles of four pixels skip less than single pixels would.
         ((1, 46, 14, 14), 47, 5, 0.877, 1.073), ((2, 20, 9, 31), 33, 5, 0.959, 1.046),
         ((1, 374, 7, 7), 13, 5, 0.804, 1.183)]

# Statements of csrc and how many operations of an element they are, on vectors of L elements.
COUNTED = {
    'store(out + i, load(a + i) + load(b + i));': 'additions += Simd<T>::size;',
    'acc[i][j] += r[j] * weights[i];': 'multiply_adds += L;',
    'acc[i][j] += r[j] * weight;': 'multiply_adds += L;',
    'store(sum + j * L, load(sum + j * L) + acc[i][j]);': 'additions += L;',
    'store(own + i, load(own + i) + load(above + i) + load(above + i + shift));': 'additions += 2 * L;',
    'acc[j] += load(upper + in_levels[j]) + load(upper + in_levels[j] + (int64_t(1) << level));': 'additions += 2 * L;',
    'acc[j] += load(from + in_t[j]);': 'additions += L;',
}


def count(backend, shape, grid):
    return executed_operations(backend, torch.empty(shape, device='meta'), grid)


@pytest.fixture(scope='module')
def counting_library(tmp_path_factory):
    """The native backend with AVX-512's vectors, on any machine, and with counters."""
    folder = tmp_path_factory.mktemp('native')
    missing = dict(COUNTED)
    for file in native_build.SOURCE.parent.iterdir():
        source = file.read_text()
        for statement in [statement for statement in missing if statement in source]:
            source = source.replace(statement, f'{{ {statement} {missing.pop(statement)} }}')
        (folder / file.name).write_text(source)
    assert not missing, f'csrc has changed: {missing}'
    (folder / 'counting.cpp').write_text(
        '#include <cstdint>\nextern "C" { int64_t multiply_adds = 0, additions = 0; }\n#include "native.cpp"\n')
    command = [*native_build.find_compiler(), 'counting.cpp', '-o', 'counting.so', '-std=c++17', '-fPIC', '-shared',
               '-D__AVX512F__', '-O1', '-w']  # yapf: disable
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / 'counting.so'))


@pytest.mark.parametrize(('shape', 'kernel_size', 'center', 'multiply_adds', 'additions'), CASES)
def test_native_executes_what_is_counted(shape, kernel_size, center, multiply_adds, additions, counting_library,
                                         monkeypatch):
    monkeypatch.setattr(native, 'load_library', lambda double: counting_library)
    counters = [ctypes.c_int64.in_dll(counting_library, name) for name in ('multiply_adds', 'additions')]
    for counter in counters:
        counter.value = 0
    grid = SharingGrid.from_kernel_size(kernel_size, center)
    x, theta = torch.rand(shape), torch.rand(shape[1], grid.num_cells, grid.num_cells)
    y = native.forward(x, theta, None, grid)
    torch.testing.assert_close(y, peripheral_conv2d(x, theta, grid, backend='reference'), rtol=1e-5, atol=1e-5)
    counted = count('native', shape, grid)
    ratios = counted.multiply_adds / counters[0].value, counted.additions / counters[1].value
    assert ratios == pytest.approx((multiply_adds, additions), abs=5e-4)


def test_all_backends_by_hand():
    # Three cells of 2, 1 and 2 taps on a map of 4 x 3: all nine reach it.
    shape, grid = (1, 1, 4, 3), SharingGrid.from_half((2, 1))
    assert count('reference', shape, grid) == Operations(25 * 12)
    # A pair of rows; three pieces of columns, and the pairs of those of two taps added to what is above.
    assert count('box_sums', shape, grid) == Operations(9 * 12, (1 + 3 + 2) * 12)
    # The same in rows of one full vector.
    assert count('native', shape, grid) == Operations(9 * 4 * 16, (1 + 3 + 2) * 4 * 16)
    # Cells of 3, 1 and 3 taps, twice two rows and one, which the native backend makes once.
    grid = SharingGrid.from_half((3, 1))
    assert count('box_sums', shape, grid) == Operations(9 * 12, (1 + 2 + 5 + 2) * 12)
    assert count('native', shape, grid) == Operations(9 * 4 * 16, (1 + 1 + 5 + 2) * 4 * 16)
    # One tile: 16 strips of two rows, 16 x 16 columns, three products for each in fp32.
    grid = SharingGrid.from_half((2, 1))
    assert count('triton', shape, grid) == Operations(3 * 3 * 2 * 16**3, (3 + 2 + 3) * 16**2 + 3 * 2 * 16**2)


@pytest.mark.parametrize('backend', COUNTERS)
def test_counts_of_images_and_channels_add_up(backend):
    grid = SharingGrid.from_kernel_size(51)
    one, six = count(backend, (1, 1, 56, 56), grid), count(backend, (1, 6, 56, 56), grid)
    assert one.multiply_adds >= 169 * 56 * 56
    assert six == one * 6
    assert one + one == one * 2
    assert count(backend, (0, 6, 56, 56), grid) == Operations()


def test_fast_backends_execute_a_fraction_of_the_dense_form():
    grid = SharingGrid.from_kernel_size(51)
    dense = 2601 * 56 * 56
    for backend, width in (('native', 64), ('box_sums', 56)):
        executed = count(backend, (1, 1, 56, 56), grid)
        assert executed.multiply_adds == 169 * 56 * width
        assert executed.multiply_adds + executed.additions < 0.09 * dense


@pytest.mark.parametrize('choice', ['native', 'box_sums', 'reference'])
def test_the_automatic_choice_of_a_cpu(choice, monkeypatch):
    offered = []
    monkeypatch.setattr(operations, 'cheapest', lambda names, function, x, grid: offered.append(
        (names, function, tuple(x.shape))) or choice)
    grid = SharingGrid.from_kernel_size(51)
    assert count('auto', (1, 46, 56, 56), grid) == count(choice, (1, 46, 56, 56), grid)
    assert offered == [(tuple(COUNTERS), 'forward', (1, 46, 56, 56))]


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be .*'box_sums', 'native', 'reference', 'triton'.*got 'cuda'"):
        count('cuda', (1, 1, 4, 4), SharingGrid.dense(3))
