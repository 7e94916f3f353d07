"""The wgmma core of the CUDA backend in the emulator (``cuda_emulator/products.h``), and where it is chosen."""

import math

import pytest
import torch

from pelk_mm.ops import SharingGrid
from pelk_mm.ops.peripheral_conv2d.cuda import backend, driver, plan
from pelk_mm.testing.cases import GRIDS, Case, expected
from pelk_mm.testing.tolerances import assert_close, relative_error

pytestmark = pytest.mark.slow

# Five cells and five chunks: both have a last one without partner. Two channels, several images for a group of threads.
SMALL = Case('small', (4, 2, 40, 37), SharingGrid.from_half([9, 9, 1]))
# Odd and even numbers of chunks, of cells, 64 rows and fewer.
EXACT = (SMALL, Case('56x56-k51', (4, 1, 56, 56), GRIDS['k51'], mean=1.0),
         Case('64x63-six-cells', (2, 1, 64, 63), SharingGrid.from_half([8, 6, 7]), mean=100.0),
         Case('slice', (2, 1, 41, 47), SharingGrid.from_half([10, 9, 3]), 'channel_slice'))
# Case, dtype, whether PyTorch allows TF32, bound of the relative error.
ONE_PRODUCT = ((EXACT[1], torch.bfloat16, False, 2e-3), (SMALL, torch.float16, False, 3e-4),
               (SMALL, torch.float32, True, 5e-4))
# Faults that the tests must notice: edits of core_wgmma.h.
FAULTS = {
    'groups of columns in the other order': ('sum[KC - 1 - g]', 'sum[g]'),
    'low parts of the maps lost': ('left + plan.part', 'left'),
    'high and low parts of theta mixed': ('operand(right, right_step, BLOCK)', 'operand(right, right_step, 128)'),
    'another chunk for the second last one': ('to_next, right + (KC - 1)', 'plan.chunk, right + (KC - 1)'),
    "a cell's blocks for the next one": ('right + CELL, true', 'right, true'),
    'sums added twice': ('PARTS == 1 && a > 0', 'a > 0'),
    'a sum changed under a product': ('    commit_products();', '    high[0][0] = 0.f;\n    commit_products();'),
    'a warp left out': ('    fence_registers();', '    if (thread() % 128 < 96) fence_registers();'),
}


@pytest.fixture(autouse=True)
def kernels(emulator, monkeypatch):
    """The emulator with wgmma, and three products."""
    monkeypatch.setattr(emulator, 'wgmma', True)
    with torch.backends.cudnn.flags(allow_tf32=False), emulator.installed():
        yield emulator


@pytest.fixture
def prepared(kernels):
    """The emulator with all that these tests run without faults, compiled in one go."""
    kernels.prepare([lambda case=case: forward(case, case.make()) for case in EXACT] +
                    [lambda case=case, dtype=dtype, tf32=tf32: one_product(case, case.make(dtype), tf32)
                     for case, dtype, tf32, _ in ONE_PRODUCT])
    return kernels


def forward(case, inputs):
    assert backend.kernels(inputs.x, case.grid)['forward'] == 'forward_maps, wgmma'
    return backend.forward(inputs.x, inputs.theta, inputs.bias, case.grid)


def one_product(case, inputs, allow_tf32):
    with torch.backends.cudnn.flags(allow_tf32=allow_tf32):
        return forward(case, inputs)


@pytest.mark.parametrize('case', EXACT, ids=lambda case: case.id)
def test_fp32_error_bound(prepared, case):
    inputs = case.make()
    assert_close(forward(case, inputs), expected(inputs, case.grid).output, bound=5e-7)


@pytest.mark.parametrize(('case', 'dtype', 'tf32', 'bound'), ONE_PRODUCT, ids=['bf16', 'fp16', 'tf32'])
def test_one_product(prepared, case, dtype, tf32, bound):
    inputs = case.make(dtype)
    assert relative_error(one_product(case, inputs, tf32), expected(inputs, case.grid).output) < bound


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_other_planes_are_unaffected(prepared, value):
    inputs = SMALL.make()
    right = expected(inputs, SMALL.grid).output
    inputs.x[1, 1, 17, 20] = value
    others = torch.ones(4, 2, dtype=torch.bool)
    others[1, 1] = False
    output = forward(SMALL, inputs)
    assert not output[1, 1].isfinite().all()
    assert_close(output[others], right[others])


def test_same_bits_in_any_order(prepared, monkeypatch):
    inputs = SMALL.make()
    results = []
    for blocks, seed in ((1, 1), (3, 9)):
        monkeypatch.setattr(prepared, 'blocks', blocks)
        monkeypatch.setattr(prepared, 'seed', seed)
        results.append(forward(SMALL, inputs))
    assert torch.equal(*results)


def test_every_synchronisation_is_missed(prepared, monkeypatch):
    """Five barriers; two fences that publish stores; fence of registers, commit and wait."""
    inputs = SMALL.make()
    monkeypatch.setattr(prepared, 'blocks', 1)
    forward(SMALL, inputs)
    assert prepared.barriers['forward_maps'] == 10
    for number in range(10):
        monkeypatch.setattr(prepared, 'removed', number)
        with pytest.raises(AssertionError, match='race|not fenced|not waited for'):
            forward(SMALL, inputs)


def test_faults_are_noticed(kernels, monkeypatch):
    inputs = SMALL.make()
    right = expected(inputs, SMALL.grid).output
    edits = {name: (('core_wgmma.h', *edit), ) for name, edit in FAULTS.items()}
    kernels.prepare([lambda: forward(SMALL, inputs)], tuple(edits.values()))
    for name, edit in edits.items():
        monkeypatch.setattr(kernels, 'edits', edit)
        try:
            actual = forward(SMALL, inputs)
        except AssertionError:
            continue
        assert not relative_error(actual, right) < 2e-6, name


@pytest.mark.parametrize('side', [33, 41, 56, 64])
def test_all_64_rows_lie_in_the_maps_of_the_group(side):
    """A product reads rows beyond the map too; they are of the same group of threads, in order of their addresses."""
    launches = [plan.plan_forward(grid, plan.Shape(1, 1, side, side, torch.float32, 2, 232448, True))
                for grid in GRIDS.values()]
    plans = [launch.plan for launch in launches if launch.core == 'wgmma']
    assert len(plans) >= 6
    for each in plans:
        rows = list(each.cell_row[:each.used + each.used % 2])
        assert rows == sorted(rows)
        last_row = each.lead + each.part + (-(-side // 8) - 1) * each.chunk + rows[-1] + 63 * 16
        assert last_row + 16 <= each.group


@pytest.mark.parametrize(('dtype', 'counts'), [(torch.float32, (2523, 45.8)), (torch.bfloat16, (841, 20.8))], ids=str)
def test_work_of_a_pixel(prepared, monkeypatch, dtype, counts):
    """As README.md states it; words include those that products read."""
    case = EXACT[1]
    monkeypatch.setattr(prepared, 'blocks', 1)
    forward(case, case.make(dtype))
    multiply_adds, words = (count / (4 * 56**2) for count in prepared.counts)
    assert (round(multiply_adds), round(words, 1)) == counts


@pytest.mark.parametrize(('grid', 'size', 'core'), [
    ('k51', (56, 56), 'wgmma'),
    ('k101-center7', (64, 64), 'wgmma'),
    ('k51', (33, 40), 'wgmma'),
    ('k13', (56, 56), 'mma.sync'),
    ('k51', (32, 56), 'mma.sync'),
    ('k51', (56, 32), 'mma.sync'),
])
def test_taken_where_it_pays(grid, size, core):
    assert backend.kernels(torch.zeros(1, 1, *size), GRIDS[grid])['forward'] == f'forward_maps, {core}'


@pytest.mark.parametrize(('capability', 'variable', 'expects'), [
    ((9, 0), '1', True), ((9, 0), '0', False), ((8, 9), '1', False), ((10, 0), '1', False),
])  # yapf: disable
def test_only_compute_capability_9_0_has_it(monkeypatch, capability, variable, expects):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    monkeypatch.setenv('PELK_MM_WGMMA', variable)
    assert HAS_WGMMA(torch.device('cuda', 0)) == expects


HAS_WGMMA = driver.has_wgmma
