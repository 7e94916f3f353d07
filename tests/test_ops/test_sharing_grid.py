import re

import pytest
import torch

from pelk_mm.ops import SharingGrid, expand_kernel, sum_over_cells

# K, centre, half grid: every grid that the paper prints, and those its models derive by the same rule.
PRINTED = [
    (31, 5, (7, 4, 2, 1, 1, 1)),
    (33, 5, (8, 4, 2, 1, 1, 1)),
    (51, 1, (11, 8, 4, 2, 1)),
    (51, 3, (10, 8, 4, 2, 1, 1)),
    (51, 5, (9, 8, 4, 2, 1, 1, 1)),
    (51, 7, (8, 8, 4, 2, 1, 1, 1, 1)),
    (49, 5, (8, 8, 4, 2, 1, 1, 1)),
    (47, 5, (7, 8, 4, 2, 1, 1, 1)),
    (13, 5, (2, 2, 1, 1, 1)),
    (101, 7, (17, 16, 8, 4, 2, 1, 1, 1, 1)),
    (69, 7, (1, 16, 8, 4, 2, 1, 1, 1, 1)),
    (67, 7, (16, 8, 4, 2, 1, 1, 1, 1)),
]


@pytest.mark.parametrize('kernel_size, center, half', PRINTED, ids=lambda value: str(value))
def test_printed_grids(kernel_size, center, half):
    grid = SharingGrid.from_kernel_size(kernel_size, center)
    assert grid.half == half
    assert grid == SharingGrid.from_half(half)
    assert grid == SharingGrid.create(list(half)) == SharingGrid.create(kernel_size, half)
    assert grid.widths == half + half[:-1][::-1]
    assert (grid.kernel_size, grid.num_cells, grid.center) == (kernel_size, 2 * len(half) - 1, center)
    assert grid.starts[0] == -(kernel_size // 2)
    assert grid.starts[grid.num_cells // 2] == 0


@pytest.mark.parametrize('kernel_size, center, percent', [(31, 5, 12.6), (33, 5, 11.1), (51, 1, 3.1), (51, 3, 4.7),
                                                          (51, 5, 6.5), (51, 7, 8.7)])
def test_stored_ratio(kernel_size, center, percent):
    assert round(100 * SharingGrid.from_kernel_size(kernel_size, center).stored_ratio, 1) == percent


@pytest.mark.parametrize('half, ratio', [
    ([2] * 8 + [1], 0.27),
    ([2] * 7 + [1] * 3, 0.33),
    ([4, 4, 4, 2, 1, 1, 1], 0.16),
    ([8, 4, 2, 1, 1, 1], 0.11),
    ([1, 1, 2, 4, 8, 1], 0.11),
])
def test_hand_made_grids_of_table_5(half, ratio):
    grid = SharingGrid.from_half(half)
    assert grid.kernel_size == 33
    assert abs(grid.stored_ratio - ratio) < 0.006


def test_dense_and_wide_centres():
    assert SharingGrid.dense(7).widths == (1, ) * 7
    assert SharingGrid.dense(7).is_dense
    assert SharingGrid.from_half([4, 3]).center == 0
    assert SharingGrid.from_kernel_size(51, base=3).half == (11, 9, 3, 1, 1, 1)


def test_expand_kernel_by_hand():
    grid = SharingGrid.from_half([2, 1])
    theta = torch.tensor([[[1., 2, 3], [4, 5, 6], [7, 8, 9]]])
    expected = torch.tensor([[[1., 1, 2, 3, 3], [1, 1, 2, 3, 3], [4, 4, 5, 6, 6], [7, 7, 8, 9, 9], [7, 7, 8, 9, 9]]])
    assert torch.equal(expand_kernel(theta, grid), expected)


def test_cells_that_reach_a_map():
    grid = SharingGrid.from_kernel_size(47)
    assert [grid.reachable(size) for size in (64, 18)] == [range(13)] * 2
    # 7 8 4 2 1 1 1: the outermost cells begin 17 positions away, the next ones 9.
    assert [grid.reachable(size) for size in (17, 9, 1)] == [range(1, 12), range(2, 11), range(6, 7)]
    assert SharingGrid.from_half([7]).reachable(1) == range(1)
    with pytest.raises(ValueError, match='size must be at least 1, got 0'):
        grid.reachable(0)


def test_pieces_by_hand():
    grid = SharingGrid.from_half([6, 1])
    assert grid.pieces() == ((0, -6, 4), (0, -2, 2), (1, 0, 1), (2, 1, 4), (2, 5, 2))
    assert grid.pieces(grid.reachable(1)) == ((1, 0, 1), )
    assert grid.pieces(range(2, 3)) == grid.pieces()[3:]


@pytest.mark.parametrize('call, words', [
    (lambda: SharingGrid.from_kernel_size(50), ('kernel_size', 'odd', '50')),
    (lambda: SharingGrid.from_kernel_size(51, center=4), ('center', 'odd', '4')),
    (lambda: SharingGrid.from_kernel_size(5, center=7), ('center', '7', '5')),
    (lambda: SharingGrid.from_kernel_size(51, base=0), ('base', '0')),
    (lambda: SharingGrid.from_half([]), ('half', 'empty')),
    (lambda: SharingGrid.from_half([2, 0, 1]), ('at least 1', '[2, 0, 1]')),
    (lambda: SharingGrid.from_half([4, 2]), ('centre', 'odd', '2')),
    (lambda: SharingGrid.from_half([4, 2, 1], kernel_size=15), ('13', '15', '[4, 2, 1]')),
    (lambda: expand_kernel(torch.zeros(1, 3, 5), SharingGrid.from_half([2, 1])), ('theta', '(C, 3, 3)', '(1, 3, 5)')),
    (lambda: sum_over_cells(torch.zeros(1, 4, 5), SharingGrid.from_half([2, 1])), ('kernel', '(C, 5, 5)', '(1, 4, 5)')),
])
def test_wrong_values_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize('call', [lambda: SharingGrid.from_kernel_size(51.0), lambda: SharingGrid.from_half([2.0, 1]),
                                  lambda: SharingGrid.create('51')])
def test_wrong_types(call):
    with pytest.raises(TypeError):
        call()
