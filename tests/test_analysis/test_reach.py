"""Bounds of one layer on the reach tasks, against cases worked by hand and the figures that they were asked for."""

import numpy as np
import pytest

from pelk_mm.analysis.reach import (
    _decode,
    border_accuracy,
    cells_at,
    drawn_pairs_accuracy,
    kernel_cells,
    nearest_seed_bound,
    offset_pairs_bound,
    stripe_cells,
)
from pelk_mm.ops import SharingGrid

DENSE_31, DENSE_51 = (kernel_cells(SharingGrid.dense(size)) for size in (31, 51))
PERIPHERAL_31, PERIPHERAL_51 = (kernel_cells(SharingGrid.from_kernel_size(size)) for size in (31, 51))


def test_cells_of_kernels_and_stripes():
    assert kernel_cells(SharingGrid.from_half([2, 1]))[0].tolist() == [0, 0, 1, 2, 2]
    assert len(np.unique(kernel_cells(SharingGrid.dense(5)))) == 25
    stripes = stripe_cells(5, 1)
    assert (stripes < 0).tolist() == [[True, True, False, True, True]] * 2 + [[False] * 5] + [
        [True, True, False, True, True]] * 2
    assert cells_at(stripes, np.array([[0, 0], [-2, 0], [1, 1], [0, 3]])).tolist() == [12, 2, -1, -1]


@pytest.mark.parametrize(('offsets', 'classes', 'strict', 'by_distance'), [
    # The nearest seed is in the kernel, at (2, -2) and (0, 2); two are equally near, of one class; all are outside.
    ([[3, 0], [2, -2], [9, 9]], [0, 1, 0], 1.0, 1.0),
    ([[0, 2], [9, 9], [9, 9]], [0, 1, 1], 1.0, 1.0),
    ([[0, 3], [-2, 2], [2, 2]], [0, 1, 1], 1.0, 1.0),
    ([[0, 3], [3, 3], [4, 0]], [0, 1, 1], 0.25, 0.25),
    ([[0, 3], [3, 1], [9, 9]], [0, 0, 0], 0.25, 0.25),
    # In a cell with one of another class, and with two of which one has the same class.
    ([[1, 1], [2, 2], [9, 9]], [0, 1, 0], 0.5, 0.5),
    ([[1, 1], [2, 2], [2, 1]], [0, 1, 0], 2 / 3, 2 / 3),
    # The cell of the nearest, (1 or 2, 1 or 2), is farther away on average than (0, 1 or 2), where one is at 2.
    ([[1, 1], [0, 2], [9, 9]], [0, 1, 0], 1.0, 0.0),
])
def test_decoding_by_hand(offsets, classes, strict, by_distance):
    """A 5x5 kernel with cells of 2, 1 and 2."""
    cells = kernel_cells(SharingGrid.from_half([2, 1]))
    assert _decode(cells, np.array([offsets]), np.array([classes])) == pytest.approx((strict, by_distance))


def test_one_seed_on_a_small_map():
    """On 3 x 3 pixels 7 of 9 pairs of rows are at most 1 apart."""
    seen = (7 / 9)**2
    bound = nearest_seed_bound(kernel_cells(SharingGrid.dense(3)), size=3, num_seeds=1, samples=50_000)
    assert bound == pytest.approx([seen + (1 - seen) / 4] * 2, abs=0.01)


@pytest.mark.parametrize(('cells', 'expected'), [
    (kernel_cells(SharingGrid.dense(7)), 0.30),
    (stripe_cells(51, 5), 0.49),
    (DENSE_31, 0.76),
    (DENSE_51, 0.94),
    (PERIPHERAL_31, 0.72),
    (PERIPHERAL_51, 0.87),
], ids=['7x7', 'stripe 51', 'dense 31', 'dense 51', 'peripheral 31', 'peripheral 51'])
def test_nearest_seed(cells, expected):
    strict, by_distance = nearest_seed_bound(cells, samples=20_000)
    assert by_distance == pytest.approx(expected, abs=0.01)
    assert strict >= by_distance


def test_offset_pairs_by_hand():
    assert offset_pairs_bound(DENSE_31, exact=False) == offset_pairs_bound(DENSE_31, exact=True) == [1, 1, 0.5]
    assert offset_pairs_bound(PERIPHERAL_51, exact=False) == [1, 1, 1]
    # Of the pixels beside the diagonal 8 of 15, 12 of 42 and 6 of 30 lie in other cells than the diagonal: (5, 4) does,
    # in the cells 5 ... 8 and 3 ... 4. From 16 on (16, 13 ... 16) are in one cell, and all from 17 on in another.
    assert offset_pairs_bound(PERIPHERAL_51, exact=True) == pytest.approx([(1 + 8 / 15) / 2, (1 + 12 / 42) / 2, 0.6])
    assert offset_pairs_bound(stripe_cells(51, 5), exact=False) == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match='diagonal and along an axis'):
        offset_pairs_bound(np.zeros((51, 51), int), exact=False)


def test_drawn_maps_against_the_bounds():
    """Half of the A are positive; a dense kernel sees every offset, one of 7x7 none; near the border fewer B fit."""
    assert border_accuracy(0, exact=False, maps=20) == [0.5] * 3
    assert drawn_pairs_accuracy(kernel_cells(SharingGrid.dense(7)), exact=True, maps=20) == [0.5] * 3
    assert drawn_pairs_accuracy(DENSE_51, exact=True, maps=20) == [1] * 3
    assert np.mean(border_accuracy(3, exact=False, maps=200)) == pytest.approx(0.58, abs=0.015)
    # Equally frequent offsets give 0.767, 0.643 and 0.6.
    assert drawn_pairs_accuracy(PERIPHERAL_51, exact=True, maps=200) == pytest.approx([0.767, 0.67, 0.62], abs=0.015)
