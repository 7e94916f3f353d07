"""The operator on inputs that nobody thought of.

Integers are computed with wherever possible: every sum of them is exact, in any order, so results are compared bit for
bit. Hypothesis draws the cases of a property; the numbers in the tensors come from a seed.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops.peripheral_conv2d.backends import BACKENDS
from pelk_mm.testing.cases import LAYOUTS, Case, Inputs, Results, expected, lay_out, run
from pelk_mm.testing.random_weights import whole_numbers
from pelk_mm.testing.tolerances import RELATIVE_ERROR

from ..helpers.strategies import SEEDS, sharing_grids

GRIDS = sharing_grids()
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

@st.composite
def cases(draw, batch: int = 0, work: int = 2**19) -> Case:
    """Any map, from one pixel up, under any grid; ``work`` bounds the multiply-adds of the dense convolution."""
    grid = draw(GRIDS)
    room = max(work // grid.kernel_size**2, 4)
    height = draw(st.integers(1, min(room, 40)))
    width = draw(st.integers(1, min(room // height, 40)))
    channels = draw(st.integers(1, max(min(room // (height * width), 5), 1)))
    images = draw(st.integers(batch, max(min(room // (height * width * channels), 4), 1)))
    return Case('drawn', (images, channels, height, width), grid, draw(st.sampled_from(LAYOUTS)))


def integer_inputs(case: Case, seed: int, dtype=torch.float64, grad_layout: str = 'contiguous') -> Inputs:
    """As ``Case.make``, of integers from -3 to 3, whose sums are exact in float32 as long as they are under 2**24.

    theta and bias are views, as they are when they come out of a larger parameter or a flip.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, cells = case.shape[1], case.grid.num_cells
    x = lay_out(whole_numbers(generator, *case.shape, dtype=dtype), case.layout)
    theta = whole_numbers(generator, cells, 2 * channels, cells, dtype=dtype).transpose(0, 1)[::2].mT
    bias = whole_numbers(generator, channels, 2, dtype=dtype)[:, 1]
    return Inputs(x, theta, bias, lay_out(whole_numbers(generator, *case.shape, dtype=dtype), grad_layout))


def by_matrices(x: torch.Tensor, theta: torch.Tensor, grid: SharingGrid, bias: torch.Tensor) -> torch.Tensor:
    """The definition, written without padding, expansion or convolution: Y = sum_ab theta_ab R_a X C_b' + bias.

    Row y of the 0/1 matrix R_a says which rows of X the a-th cell covers when the kernel lies over y; C_b likewise.
    """

    def covers(side: int) -> torch.Tensor:
        offset = torch.arange(side) - torch.arange(side)[:, None]
        starts, widths = torch.tensor(grid.starts)[:, None, None], torch.tensor(grid.widths)[:, None, None]
        return ((offset >= starts) & (offset < starts + widths)).to(x.dtype)

    rows, columns = covers(x.shape[-2]), covers(x.shape[-1])
    mixed = torch.einsum('cab,ayr->cbyr', theta, rows)
    mixed = torch.einsum('cbyr,ncrs->ncbys', mixed, x)
    return torch.einsum('ncbys,bxs->ncyx', mixed, columns) + bias[:, None, None]


def exact(inputs: Inputs, grid: SharingGrid) -> Results:
    """Results of ``run`` in fp64: :func:`by_matrices` and its gradients by autograd."""
    x, theta, bias, grad = (tensor.detach().double() for tensor in inputs)
    x, theta, bias = x.requires_grad_(), theta.requires_grad_(), bias.requires_grad_()
    output = by_matrices(x, theta, grid, bias)
    return Results(output.detach(), *torch.autograd.grad(output, (x, theta, bias), grad))


def able(inputs: Inputs, grid: SharingGrid) -> list[str]:
    """The backends that can run, the automatic choice among them."""
    return ['auto', *(name for name, reason in available_backends(*inputs[:2], grid).items() if reason is None)]


@given(cases(), SEEDS, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
def test_integers_come_out_exactly(case, seed, dtype, grad_layout):
    """Every backend, output and gradients: in half precision that is the exact sum, rounded once."""
    inputs = integer_inputs(case, seed, dtype, grad_layout)
    right = exact(inputs, case.grid)
    for backend in able(inputs, case.grid):
        # The dense path is PyTorch's, which rounds the dense kernel's gradient before it is summed over the cells.
        if dtype.itemsize == 2 and backend in ('auto', 'reference'):
            continue
        for name, actual, value in zip(Results._fields, run(inputs, case.grid, backend), right):
            assert actual.dtype == dtype
            assert torch.equal(actual, value.to(dtype)), f'{name} of {backend}'


@given(cases(), SEEDS, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.sampled_from([0.0, 1.0, 30.0]))
def test_rounding_errors_are_within_the_bound(case, seed, dtype, grad_layout, mean):
    """|actual - right| <= bound * (the same of absolute values) + what rounding the result once costs."""
    case = Case(case.id, case.shape, case.grid, case.layout, mean)
    inputs = case.make(dtype, seed=seed)
    inputs = inputs._replace(grad_output=lay_out(inputs.grad_output.contiguous(), grad_layout))
    right = expected(inputs, case.grid)
    magnitudes = exact(Inputs(*(tensor.abs() for tensor in inputs)), case.grid)
    bound, unit = RELATIVE_ERROR[torch.promote_types(dtype, torch.float32)], torch.finfo(dtype).eps / 2
    for backend in able(inputs, case.grid):
        if dtype.itemsize == 2 and backend in ('auto', 'reference'):
            continue
        for name, actual, value, magnitude in zip(Results._fields, run(inputs, case.grid, backend), right, magnitudes):
            allowed = bound * magnitude + unit * value.abs() + torch.finfo(dtype).tiny * unit
            # What half precision cannot hold is inf.
            close = ((actual.double() - value).abs() <= allowed) | (actual == value.to(dtype))
            assert close.all(), f'{name} of {backend}'


@given(cases(), SEEDS, st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([torch.float64, torch.float32]))
def test_scaling_by_powers_of_two_changes_no_digit(case, seed, x_power, theta_power, dtype):
    inputs = case.make(dtype, seed=seed)
    x, theta = -inputs.x * 2.0**x_power, inputs.theta * 2.0**theta_power
    for backend in able(inputs, case.grid):
        before = peripheral_conv2d(*inputs[:2], case.grid, backend=backend)
        scaled = peripheral_conv2d(x, theta, case.grid, backend=backend)
        assert torch.equal(scaled, -before * 2.0**(x_power + theta_power)), backend


@given(cases(), SEEDS)
def test_sums_of_inputs_give_sums_of_outputs(case, seed):
    first, second = (case.make(torch.float64, seed=seed + number) for number in range(2))
    magnitude = by_matrices(first.x.abs() + second.x.abs(), first.theta.abs() + second.theta.abs(), case.grid,
                            first.bias.abs() + second.bias.abs())
    for backend in able(first, case.grid):

        def call(x, theta, bias=None, backend=backend):
            return peripheral_conv2d(x, theta, case.grid, bias, backend=backend)

        sums = [
            call(first.x + second.x, first.theta) - call(first.x, first.theta) - call(second.x, first.theta),
            call(first.x, first.theta + second.theta) - call(first.x, first.theta) - call(first.x, second.theta),
            call(first.x, first.theta, first.bias) - call(first.x, first.theta) - first.bias[:, None, None],
        ]
        for difference in sums:
            assert (difference.abs() <= RELATIVE_ERROR[torch.float64] * magnitude).all(), backend


@given(cases(), SEEDS, st.tuples(*[st.integers(0, 9)] * 4), st.tuples(*[st.integers(0, 9)] * 4))
def test_moving_the_input_moves_the_output(case, seed, margins, others):
    """A patch on two canvases of zeros: wherever both show the surroundings of the patch, they show the same."""
    inputs = integer_inputs(case, seed)
    for backend in able(inputs, case.grid):
        outputs = []
        for left, right, top, bottom in (margins, others):
            canvas = torch.nn.functional.pad(inputs.x, (left, right, top, bottom))
            outputs.append((peripheral_conv2d(canvas, inputs.theta, case.grid, backend=backend), left, top))
        shared = [min(a, b) for a, b in zip(margins, others)]
        height, width = case.shape[2] + shared[2] + shared[3], case.shape[3] + shared[0] + shared[1]
        views = [
            out[..., top - shared[2]:top - shared[2] + height, left - shared[0]:left - shared[0] + width]
            for out, left, top in outputs
        ]
        assert torch.equal(*views), backend


@given(cases(), SEEDS)
def test_the_adjoint_is_the_operator_with_theta_flipped(case, seed):
    x, theta, _, y = inputs = integer_inputs(case, seed)
    for backend in able(inputs, case.grid):
        forward = (peripheral_conv2d(x, theta, case.grid, backend=backend) * y).sum()
        flipped = peripheral_conv2d(y, theta.flip(-2, -1), case.grid, backend=backend)
        assert forward == (x * flipped).sum(), backend
        _, grad_x, grad_theta, _ = run(inputs, case.grid, backend)
        assert torch.equal(grad_x, flipped), backend
        assert forward == (theta * grad_theta).sum(), backend


@given(cases(work=2**16), SEEDS)
def test_second_derivatives_come_out_exactly(case, seed):
    inputs, weights = integer_inputs(case, seed), integer_inputs(case, seed + 1)

    def second_derivatives(call) -> tuple[torch.Tensor, ...]:
        x, theta, bias, grad = (tensor.detach().requires_grad_() for tensor in inputs)
        first = torch.autograd.grad(call(x, theta, case.grid, bias), (x, theta, bias), grad, create_graph=True)
        # An empty batch takes no part, and PyTorch's own convolution says so.
        return torch.autograd.grad(first, (x, theta, grad), weights[:3], materialize_grads=True)

    right = second_derivatives(by_matrices)
    for backend in able(inputs, case.grid):
        actual = second_derivatives(lambda *args, backend=backend: peripheral_conv2d(*args, backend=backend))
        assert all(torch.equal(a, b) for a, b in zip(actual, right)), backend


@given(cases(batch=1, work=2**17), SEEDS, st.sampled_from([torch.float32, torch.bfloat16]),
       st.sampled_from(['x', 'grad_output']), st.sampled_from([float('nan'), float('inf')]), st.data())
def test_numbers_that_are_not_finite_stay_in_their_plane(case, seed, dtype, where, value, data):
    if case.layout == 'expanded':
        case = Case(case.id, case.shape, case.grid)
    clean = case.make(dtype, seed=seed)
    image, channel, row, column = (data.draw(st.integers(0, size - 1)) for size in case.shape)
    spoilt = getattr(clean, where).clone()
    spoilt[image, channel, row, column] = value
    # The layout decides in which order PyTorch sums, so it is kept.
    spoilt = lay_out(spoilt, case.layout)
    reach = case.grid.kernel_size // 2
    plane, window = torch.zeros(2, *case.shape, dtype=torch.bool)
    plane[image, channel] = True
    window[image, channel, max(row - reach, 0):row + reach + 1, max(column - reach, 0):column + reach + 1] = True
    for backend in able(clean, case.grid):
        # In half precision PyTorch's dense path multiplies values that the window does not hold by zeros.
        sharp = dtype == torch.float32 or backend not in ('auto', 'reference')
        before = run(clean, case.grid, backend)
        after = run(clean._replace(**{where: spoilt}), case.grid, backend)
        reached, untouched = (('output', 'x') if where == 'x' else ('x', 'output'))
        assert torch.equal(getattr(after, untouched), getattr(before, untouched)), backend
        maps = getattr(after, reached)
        # Exactly what the kernel reaches is spoilt, and nothing else changes by a bit.
        spared = ~window if sharp else ~plane
        assert torch.equal(maps[spared], getattr(before, reached)[spared]), backend
        assert not maps[window].isfinite().any(), backend
        others = torch.arange(case.shape[1]) != channel
        assert torch.equal(after.theta[others], before.theta[others]), backend
        assert torch.equal(after.bias[others], before.bias[others]), backend


@given(cases(), SEEDS, st.sampled_from(DTYPES))
def test_the_result_lies_in_memory_as_the_input(case, seed, dtype):
    inputs = case.make(dtype, seed=seed)
    for backend in able(inputs, case.grid):
        out = peripheral_conv2d(*inputs[:2], case.grid, backend=backend)
        assert (out.shape, out.dtype) == (inputs.x.shape, dtype)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            if inputs.x.is_contiguous(memory_format=memory_format):
                assert out.is_contiguous(memory_format=memory_format), backend
        # What the graph of torch.compile was promised.
        if backend != 'reference':
            assert out.stride() == torch.empty_like(inputs.x).stride(), backend


@given(cases(batch=1), st.data())
def test_wrong_inputs_name_the_argument(case, data):
    arguments = dict(zip(('x', 'theta', 'bias'), case.make()[:3]), grid=case.grid)
    name = data.draw(st.sampled_from([*arguments, 'backend']))
    if name == 'grid':
        value = data.draw(st.sampled_from([list(case.grid.half), case.grid.kernel_size, None]))
    elif name == 'backend':
        value = data.draw(st.text(min_size=1).filter(lambda text: text not in ('auto', *BACKENDS)))
    else:
        tensor = arguments[name]
        value = data.draw(st.sampled_from([
            tensor[None], tensor[0], tensor.new_zeros([size + 1 for size in tensor.shape]), tensor.long(),
            *([tensor.double(), tensor.half(), tensor.to('meta')] if name != 'x' else []),
        ]))
    with pytest.raises((TypeError, ValueError)) as error:
        peripheral_conv2d(**{**arguments, name: value})
    # The channels of theta and bias are counted against x, so a wrong x may be reported by their names.
    reported = (name, ) if name != 'x' else ('x', 'theta', 'bias')
    assert str(error.value).startswith(tuple(f'{name} must' for name in reported))
