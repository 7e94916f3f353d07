"""The Triton backend: kernels in Triton's interpreter, with the rounding of tensor cores; and what they compile to."""

import math
from importlib.util import find_spec

import pytest
import torch

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops.concat_layer_norm import concat_layer_norm, launch
from pelk_mm.ops.peripheral_conv2d import triton_backend
from pelk_mm.ops.peripheral_conv2d.triton_backend import Tile
from pelk_mm.testing.cases import CASES, GRIDS, POISON_CASES, PRECISION_CASES, Case, expected, poison
from pelk_mm.testing.interpreter_triton import (
    always,
    compile_concat_layer_norm,
    compile_kernel,
    run,
    specialized_parameters,
    triton_process,
    unrounded,
)
from pelk_mm.testing.tolerances import assert_close

pytestmark = [pytest.mark.skipif(find_spec('triton') is None, reason='triton is not installed'), pytest.mark.slow]

NAMES = ('output', 'x', 'theta', 'bias')
HALF_PRECISION = ('grid-k13', 'grid-odd-widths', 'layout-channel_slice', 'one-pixel', 'kernel-over-twice-the-map')
PRECISION = ('7x7-k51-mean10', '28x28-k3-mean100', '28x28-k51-mean0', '28x28-k51-mean100')
# Every class of tiles by width, each with rows, columns and images that do not fill them.
WIDTHS = (Case('width-14', (3, 1, 15, 14), GRIDS['k13']), Case('width-31', (2, 1, 9, 31), GRIDS['k13']),
          Case('width-72', (1, 1, 5, 72), GRIDS['k51']))
VARIANTS = {
    'large-tiles': dict(_FEW_PROGRAMS=0),
    'many-splits': dict(_THETA_GRAD_PROGRAMS=10**6),
    '64-bit-offsets': dict(_is_wide=always),
}


def by_id(case):
    return case.id


@pytest.fixture(scope='module')
def interpreter():
    with triton_process(interpret=True) as process:
        yield process


@pytest.fixture(scope='module')
def compiler():
    with triton_process(interpret=False) as process:
        yield process


def check(process, case, dtype, bound=None, **settings):
    inputs = case.make(dtype)
    results = process.submit(run, inputs, case.grid, **settings).result()
    for name, actual, right in zip(NAMES, results, expected(inputs, case.grid)):
        assert actual.dtype == dtype
        # Of few numbers one can be unlucky.
        assert_close(actual, right, f'{name} of {case.id}', bound if actual.numel() >= 100 else None)


@pytest.mark.parametrize('case', CASES, ids=by_id)
def test_output_and_gradients(interpreter, case):
    check(interpreter, case, torch.float32)


# Rounding the result costs 1.7e-3 and 2.1e-4; rounding the box sums to bf16 as well would make it 2.4e-3.
@pytest.mark.parametrize(('dtype', 'bound'), [(torch.bfloat16, 2e-3), (torch.float16, 2.5e-4)], ids=str)
@pytest.mark.parametrize('case', [case for case in CASES if case.id in HALF_PRECISION], ids=by_id)
def test_half_precision(interpreter, case, dtype, bound):
    check(interpreter, case, dtype, bound)


@pytest.mark.parametrize('case', [case for case in PRECISION_CASES if case.id in PRECISION], ids=by_id)
def test_fp32_error_bound(interpreter, case):
    check(interpreter, case, torch.float32)


def test_bf16_sums_are_those_of_fp32(interpreter):
    """In one chain over all cells, which tensor cores truncate, the error is 4.2e-7; with restarts it is 6e-8."""
    case = Case('bf16', (1, 1, 28, 28), GRIDS['k51'], mean=100.0)
    inputs = case.make(torch.bfloat16)
    inputs = inputs._replace(theta=inputs.theta.abs())
    output = interpreter.submit(unrounded, inputs, case.grid).result()
    assert_close(output, expected(inputs, case.grid).output, bound=1.5e-7)


def test_numbers_next_to_the_largest(interpreter):
    case = Case('largest', (1, 1, 5, 6), GRIDS['k3'])
    inputs = case.make()
    inputs.x[0, 0, 2, 1:4] = torch.finfo(torch.float32).max * torch.tensor([1, -1, 1 - 2**-13])
    inputs = inputs._replace(theta=inputs.theta / 8)
    output = interpreter.submit(unrounded, inputs, case.grid).result()
    assert_close(output, expected(inputs, case.grid).output)


def test_a_table_outlives_the_modes_of_its_first_call():
    """A mode of the calling thread stands for the private memory of a CUDA graph, which belongs to a thread too."""
    with torch.inference_mode():
        table = triton_backend._table(SharingGrid.from_half([3, 5, 1]), torch.device('cpu'))
    assert table.tolist() == [-8, -5, 0, 1, 6, 3, 5, 1, 5, 3, *[0] * 3, *[1] * 5, 2, *[3] * 5, *[4] * 3]
    assert not table.is_inference()


def test_neighbouring_programs_read_the_same_rows():
    """The first axis of a launch is the fastest: it counts the columns, and for dtheta the cells."""
    tile, programs = triton_backend._forward_tile(16, 46, 128, 128, 4)
    assert programs == (16 * 64 // tile.G * 2, 46)
    tile, programs = triton_backend._theta_grad_tile(16, 46, 128, 128, GRIDS['k51'])
    assert programs[:2] == (GRIDS['k51'].num_cells * 2, 46)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('case', WIDTHS, ids=by_id)
def test_tiles_splits_and_offsets(interpreter, case, variant):
    check(interpreter, case, torch.float32, **VARIANTS[variant])


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('case', POISON_CASES, ids=by_id)
def test_other_images_and_channels_are_unaffected(interpreter, case, value):
    inputs, others = poison(case.make(), value)
    right = expected(case.make(), case.grid)
    output, grad_x, grad_theta, _ = interpreter.submit(run, inputs, case.grid).result()
    assert not output[1, 1].isfinite().all()
    assert_close(output[others], right.output[others])
    assert_close(grad_x, right.x)
    assert_close(grad_theta[[0, 2]], right.theta[[0, 2]])


def test_cases_reach_every_alignment():
    def alignments(cases):
        return {triton_backend._alignment(case.make().x) for case in cases}

    assert alignments((*CASES, *WIDTHS)) == {1, 2, 4}
    assert triton_backend._alignment(torch.zeros(1, 1, 4, 9)[..., 1:]) == 1
    assert triton_backend._alignment(torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8).half()) == 4


def test_offsets_beyond_32_bits_are_noticed():
    for stride, wide in ((2**31 - 2, False), (2**31 - 1, True)):
        x = torch.empty_strided((1, 1, 2, 2), (0, 0, stride, 1), device='meta')
        assert triton_backend._is_wide(x) == wide


def test_says_why_not():
    x, theta = torch.zeros(1, 2, 8, 8), torch.zeros(2, 3, 3)
    reasons = available_backends(x, theta, GRIDS['k3'])
    assert reasons['triton'] == 'x is on cpu: needs a CUDA device'
    with pytest.raises(RuntimeError, match='needs a CUDA device'):
        peripheral_conv2d(x, theta, GRIDS['k3'], backend='triton')
    assert 'float64' in triton_backend.why_not(x.double(), GRIDS['k3'])


def test_says_why_not_in_the_interpreter(interpreter):
    x = torch.zeros(1, 2, 8, 8)
    why_not = triton_backend.why_not
    assert interpreter.submit(why_not, x, GRIDS['k51']).result() is None
    assert '65 cells' in interpreter.submit(why_not, x, SharingGrid.dense(65)).result()
    assert '65536 channels' in interpreter.submit(why_not, torch.zeros(1).expand(1, 65536, 1, 1), GRIDS['k3']).result()


def test_one_binary_serves_all_shapes(compiler):
    for kernel in ('forward_kernel', 'theta_grad_kernel'):
        assert compiler.submit(specialized_parameters, kernel).result() == ()


TILES = [('forward_kernel', tile) for tiles in (triton_backend.FORWARD_TILES, triton_backend.SMALL_FORWARD_TILES)
         for tile in tiles.values()]
TILES += [('theta_grad_kernel', tile) for tile in triton_backend.THETA_GRAD_TILES.values()]
COMPILED = [(*kernel, dtype, 90, 4, False) for kernel in TILES for dtype in ('fp32', 'bf16')]
COMPILED += [(*kernel, 'fp16', 80, 4, False) for kernel in TILES if kernel[1].BN < 64]
COMPILED += [('forward_kernel', Tile(64, 16, 64, 4), 'fp32', 90, 1, True)]


@pytest.mark.parametrize(('kernel', 'tile', 'dtype', 'capability', 'align', 'wide'), COMPILED)
def test_compiles_to_what_the_design_counts_on(compiler, kernel, tile, dtype, capability, align, wide):
    resources = compiler.submit(compile_kernel, kernel, tuple(tile), dtype, capability, align, wide).result()
    assert resources.tensor_core == ('wgmma' if capability >= 90 and tile.G == 64 or tile.BK == 64 else 'mma')
    assert resources.load_bits == align * (32 if dtype == 'fp32' else 16)
    # A few words are what the assembler pays for room for another program; an accumulator would be hundreds.
    assert resources.spills <= 64


@pytest.mark.parametrize(('parts', 'size', 'dtype'), [
    ((5, 9), (2, 3, 7), torch.float32),
    ((46, 78), (1, 6, 11), torch.float32),
    # Four pixels a program.
    ((374, 624), (1, 3, 3), torch.float32),
    ((46, 78), (1, 6, 11), torch.bfloat16),
    ((12, 0), (2, 3, 7), torch.float32),
], ids=str)
@pytest.mark.parametrize('affine', [True, False])
def test_layer_norm_of_a_concatenation(interpreter, parts, size, dtype, affine):
    """Planes beside a channels-last slice, around a mean that a difference of sums would not survive."""
    batch, height, width = size
    x = (torch.randn(batch, sum(parts), height, width) + 100).to(dtype)
    a, b = x[:, :parts[0]].contiguous(), x.contiguous(memory_format=torch.channels_last)[:, parts[0]:]
    weight, bias = torch.randn(2, sum(parts)).to(dtype) if affine else (None, None)
    inputs = a, b, weight, bias
    found = interpreter.submit(launch, *inputs, 1e-6).result()
    assert found.is_contiguous(memory_format=torch.channels_last)
    right = concat_layer_norm(*(None if tensor is None else tensor.double() for tensor in inputs), 1e-6)
    # The mean is rounded to fp32.
    assert_close(found, right, bound=1e-5 if dtype == torch.float32 else None)


@pytest.mark.parametrize(('parts', 'capability'), [((46, 78), 90), ((93, 156), 90), ((374, 624), 80)], ids=str)
def test_layer_norm_of_a_concatenation_compiles_without_spills(compiler, parts, capability):
    resources = compiler.submit(compile_concat_layer_norm, parts, 'fp32', capability).result()
    assert resources.spills == 0
    assert resources.registers <= 128
