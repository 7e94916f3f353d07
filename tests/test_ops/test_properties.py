"""Grids, expansion and the operator on inputs that nobody thought of.

Integers are computed with wherever possible: every sum of them is exact, in any order, so results are compared bit for
bit. Hypothesis draws the cases of a property; the numbers in the tensors come from a seed.
"""

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelk_mm.ops import SharingGrid, available_backends, expand_kernel, peripheral_conv2d, sum_over_cells
from pelk_mm.ops.peripheral_conv2d.backends import BACKENDS
from pelk_mm.testing.cases import LAYOUTS, Case, Inputs, Results, expected, lay_out, run
from pelk_mm.testing.strategies import half_grids, odd
from pelk_mm.testing.tolerances import RELATIVE_ERROR

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SEEDS = st.integers(0, 2**16)


@st.composite
def rules(draw, largest: int = 81) -> dict:
    """Arguments of ``SharingGrid.from_kernel_size``."""
    kernel_size = draw(odd(1, largest))
    return dict(kernel_size=kernel_size, center=draw(odd(1, kernel_size)), base=draw(st.integers(1, 5)))


GRIDS = st.one_of(
    half_grids().map(SharingGrid.from_half),
    rules().map(lambda rule: SharingGrid.from_kernel_size(**rule)),
    odd(1, 13).map(SharingGrid.dense))

# ---- grids


@given(half_grids(widest=30, longest=12))
def test_a_half_grid_is_mirrored(half):
    grid = SharingGrid.from_half(half)
    cells = 2 * len(half) - 1
    assert grid.half == half == grid.widths[:len(half)]
    assert grid.widths == grid.widths[::-1]
    assert grid.num_cells == len(grid.widths) == cells
    assert grid.kernel_size == sum(grid.widths) == len(grid.cells)
    assert grid.kernel_size % 2 == 1
    assert grid.stored_ratio == pytest.approx(cells * cells / sum(grid.widths)**2)
    assert grid.is_dense == (set(half) == {1}) == (grid.stored_ratio == 1)
    offsets = range(-(grid.kernel_size // 2), grid.kernel_size // 2 + 1)
    for cell, (start, width) in enumerate(zip(grid.starts, grid.widths)):
        assert [offset for offset, owner in zip(offsets, grid.cells) if owner == cell] == [*range(start, start + width)]
    # The fine-grained centre reaches as far as neighbouring taps have parameters of their own.
    middle = range(cells // 2 - grid.center // 2, cells // 2 + grid.center // 2 + 1) if grid.center else range(0)
    assert all(grid.widths[cell] == 1 for cell in middle)
    if grid.center:
        assert grid.center == cells or grid.widths[middle.start - 1] > 1
    else:
        assert half[-1] > 1


@given(half_grids(widest=30, longest=12).map(SharingGrid.from_half), st.integers(1, 60))
def test_reachable_cells_and_pieces_are_those_of_the_taps(grid, size):
    offsets = {difference for difference in range(1 - size, size)}
    spans = [range(start, start + width) for start, width in zip(grid.starts, grid.widths)]
    assert [*grid.reachable(size)] == [cell for cell, span in enumerate(spans) if offsets & {*span}]
    taps = [(cell, start + tap) for cell, start, width in grid.pieces() for tap in range(width)]
    assert taps == [(cell, tap) for cell, span in enumerate(spans) for tap in span]
    assert all(width & (width - 1) == 0 for _, _, width in grid.pieces())
    # No cell has two pieces of one width, so no other cut has fewer.
    assert len({(cell, width) for cell, _, width in grid.pieces()}) == len(grid.pieces())


@given(rules(largest=2001))
def test_the_rule_of_the_paper(rule):
    grid = SharingGrid.from_kernel_size(**rule)
    assert grid.kernel_size == rule['kernel_size']
    outwards = grid.half[::-1]
    fine = rule['center'] // 2 + 1
    assert outwards[:fine] == (1, ) * fine
    *full, outermost = outwards[fine:] or (1, )
    assert full == [rule['base']**(index + 1) for index in range(len(full))]
    # What is left for the outermost is no more than the rule would give it.
    assert 1 <= outermost <= rule['base']**(len(full) + 1)
    assert grid.center >= rule['center']


@given(GRIDS, GRIDS)
def test_every_way_to_make_a_grid_leads_to_the_same(grid, other):
    widths = list(grid.half)
    size = grid.kernel_size
    twins = [
        SharingGrid(grid.half),
        SharingGrid(widths),
        SharingGrid.from_half(widths),
        SharingGrid.from_half(widths, size),
        SharingGrid.create(widths),
        SharingGrid.create(grid),
        SharingGrid.create(size, widths),
        SharingGrid.create(size, grid),
        SharingGrid.create(None, grid, center=2, base=0),
        copy.copy(grid),
        copy.deepcopy(grid),
        eval(repr(grid)),
        *(pickle.loads(pickle.dumps(grid, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    ]
    assert widths == list(grid.half), "the caller's list was edited"
    for twin in twins:
        assert twin == grid
        assert hash(twin) == hash(grid)
        assert vars(twin) == vars(grid)
    assert (grid == other) == (grid.half == other.half)
    assert len({grid, other, *twins}) == (1 if grid == other else 2)
    if size != other.kernel_size:
        with pytest.raises(ValueError, match=f'covers a kernel of {size}, but kernel_size is {other.kernel_size}'):
            SharingGrid.create(other.kernel_size, grid)


@given(GRIDS, st.sampled_from(['half', 'widths', 'kernel_size', 'num_cells', 'starts', 'center', 'cells']))
def test_grids_do_not_change(grid, name):
    with pytest.raises(FrozenInstanceError, match=name):
        setattr(grid, name, None)


NO_INT = st.one_of(st.floats(), st.booleans(), st.text(max_size=3), st.none(), st.just([5]), st.just(1j))


@given(rules(), st.sampled_from(['kernel_size', 'center', 'base']), st.data())
def test_wrong_rules_name_the_argument(rule, name, data):
    wrong = st.integers(max_value=0) if name == 'base' else st.integers().filter(lambda size: size < 1 or size % 2 == 0)
    if name == 'center':
        wrong |= odd(1, 99).map(lambda more: rule['kernel_size'] + 1 + more)
    value = data.draw(st.one_of(wrong, NO_INT))
    error = ValueError if type(value) is int else TypeError
    with pytest.raises(error, match=f'^{name} must') as info:
        SharingGrid.from_kernel_size(**{**rule, name: value})
    assert repr(value) in str(info.value)


@given(half_grids(), st.data())
def test_wrong_half_grids_name_what_is_wrong(half, data):
    place = data.draw(st.integers(0, len(half) - 1))
    value = data.draw(st.one_of(st.integers(max_value=0), NO_INT))
    widths = [*half[:place], value, *half[place + 1:]]
    for make in (SharingGrid, SharingGrid.from_half, SharingGrid.create):
        with pytest.raises(ValueError if type(value) is int else TypeError, match='every width of a sharing grid must'):
            make(widths)
    even = data.draw(st.integers(1, 20)) * 2
    with pytest.raises(ValueError, match=rf'the centre \(last\) width of a half grid must be odd, got {even}'):
        SharingGrid.from_half([*half[:-1], even])


@given(NO_INT.filter(lambda value: not isinstance(value, list)))
def test_other_things_than_sequences_of_widths_are_refused(value):
    for make in (SharingGrid, SharingGrid.from_half, lambda half: SharingGrid.create(51, half) if half is not None else
                 SharingGrid.create(None)):
        with pytest.raises(TypeError, match='grid|kernel_size') as info:
            make(value)
        assert repr(value) in str(info.value)


# ---- expansion


def whole_numbers(generator: torch.Generator, *size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randint(-3, 4, size, generator=generator).to(dtype)


@given(GRIDS, st.integers(0, 3), SEEDS, st.sampled_from([*DTYPES, torch.int64, torch.uint8, torch.bool]), st.booleans())
def test_expansion_takes_each_position_from_its_cell(grid, channels, seed, dtype, transposed):
    cells = grid.num_cells
    theta = torch.randint(0, 99, (channels, cells, cells), generator=torch.Generator().manual_seed(seed)).to(dtype)
    theta = theta.mT if transposed else theta
    kernel = expand_kernel(theta, grid)
    assert (kernel.shape, kernel.dtype) == ((channels, grid.kernel_size, grid.kernel_size), dtype)
    index = [cell for cell, width in enumerate(grid.widths) for _ in range(width)]
    assert torch.equal(kernel, theta[:, index][:, :, index])
    half = grid.kernel_size // 2
    firsts = [start + half for start in grid.starts]
    assert torch.equal(kernel[:, firsts][:, :, firsts], theta)
    for start, width in zip(firsts, grid.widths):
        rows, columns = kernel[:, start:start + width], kernel[:, :, start:start + width]
        assert torch.equal(rows, rows[:, :1].expand_as(rows))
        assert torch.equal(columns, columns[:, :, :1].expand_as(columns))


@given(GRIDS, st.integers(0, 3), SEEDS)
def test_summing_over_cells_is_the_adjoint_of_expansion(grid, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    theta = whole_numbers(generator, channels, grid.num_cells, grid.num_cells).requires_grad_()
    kernel = whole_numbers(generator, channels, grid.kernel_size, grid.kernel_size).requires_grad_()
    large, small = expand_kernel(theta, grid), sum_over_cells(kernel, grid)
    assert (large * kernel).sum() == (theta * small).sum()
    assert small.sum() == kernel.sum()
    # So each is the other's gradient.
    assert torch.equal(torch.autograd.grad(large, theta, kernel)[0], small)
    assert torch.equal(torch.autograd.grad(small, kernel, theta)[0], large)
    areas = torch.tensor(grid.widths)[:, None] * torch.tensor(grid.widths)
    assert torch.equal(sum_over_cells(large, grid), areas * theta)


@given(GRIDS, SEEDS, st.integers(-4, 4), st.integers(-4, 4))
def test_expansion_is_linear(grid, seed, a, b):
    generator = torch.Generator().manual_seed(seed)
    for function, side in ((expand_kernel, grid.num_cells), (sum_over_cells, grid.kernel_size)):
        first, second = whole_numbers(generator, 2, side, side), whole_numbers(generator, 2, side, side)
        combined = function(a * first + b * second, grid)
        assert torch.equal(combined, a * function(first, grid) + b * function(second, grid))


@given(odd(1, 41), SEEDS)
def test_a_dense_grid_changes_nothing(size, seed):
    kernel = whole_numbers(torch.Generator().manual_seed(seed), 2, size, size)
    grid = SharingGrid.dense(size)
    assert torch.equal(expand_kernel(kernel, grid), kernel)
    assert torch.equal(sum_over_cells(kernel, grid), kernel)


@given(GRIDS, st.lists(st.integers(0, 9), max_size=5), st.booleans())
def test_wrong_shapes_are_named(grid, shape, expand):
    name, function, side = ('theta', expand_kernel, grid.num_cells) if expand else ('kernel', sum_over_cells,
                                                                                    grid.kernel_size)
    if len(shape) == 3 and shape[1:] == [side, side]:
        shape[1] += 1
    with pytest.raises(ValueError, match=rf'^{name} must have shape \(C, {side}, {side}\)') as error:
        function(torch.zeros(shape), grid)
    assert str(tuple(shape)) in str(error.value)


# ---- the operator


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
