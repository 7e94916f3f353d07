"""Grids and expansion on inputs that nobody thought of; hypothesis draws them.

Integers are computed with: every sum of them is exact, in any order, so results are compared bit for bit.
"""

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelk_mm.ops import SharingGrid, expand_kernel, sum_over_cells
from pelk_mm.testing.random_weights import whole_numbers

from ..helpers.strategies import SEEDS, half_grids, odd, sharing_grids, sharing_rules

GRIDS = sharing_grids()
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)

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


@given(sharing_rules(largest=2001))
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


@given(sharing_rules(), st.sampled_from(['kernel_size', 'center', 'base']), st.data())
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
def test_non_sequences_of_widths_are_refused(value):
    for make in (SharingGrid, SharingGrid.from_half, lambda half: SharingGrid.create(51, half) if half is not None else
                 SharingGrid.create(None)):
        with pytest.raises(TypeError, match='grid|kernel_size') as info:
            make(value)
        assert repr(value) in str(info.value)


@given(GRIDS, st.integers(0, 3), SEEDS, st.sampled_from(DTYPES), st.booleans())
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
