"""Upper bounds of one mixing layer on the reach tasks, from the offsets that its kernel distinguishes.

A kernel is given by its cells, (K, K): offsets with the same number share a weight, -1 is outside. A dense kernel
distinguishes all offsets, a peripheral one those of different cells, and stripes see two bands.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..datasets.reach_maps import BACKGROUND, COLORS, IGNORED, RANGES, draw_offset_pairs, relations
from ..ops import SharingGrid


class NearestSeedBound(NamedTuple):
    """Accuracies on the nearest seed.

    Attributes:
        strict (float): No layer is better: of a decoder that is shown which seed is the nearest as soon as it lies in
            the kernel, except among seeds of one cell, and guesses one of four classes otherwise.
        by_distance (float): Of a decoder that takes the seed whose cell is the nearest on average, and also guesses
            where the nearest seed lies outside. Without shared weights the two differ in ties only.
    """

    strict: float
    by_distance: float


def kernel_cells(grid: SharingGrid) -> np.ndarray:
    """Return the cells of a peripheral kernel, (K, K); ``SharingGrid.dense`` gives those of a dense one."""
    cells = np.array(grid.cells)
    return cells[:, None] * grid.num_cells + cells


def stripe_cells(kernel_size: int, stripe_width: int) -> np.ndarray:
    """Return the cells of SLaK's two stripes, (K, K): each offset in one of them is a cell."""
    band = np.abs(np.arange(kernel_size) - kernel_size // 2) <= stripe_width // 2
    cells = np.arange(kernel_size**2).reshape(kernel_size, kernel_size)
    return np.where(band[:, None] | band, cells, -1)


def cells_at(cells: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the cell at each offset, (..., 2) -> (...), -1 outside of the kernel."""
    half = cells.shape[0] // 2
    inside = (np.abs(offsets) <= half).all(-1)
    rows, columns = np.moveaxis(np.clip(offsets + half, 0, 2 * half), -1, 0)
    return np.where(inside, cells[rows, columns], -1)


def nearest_seed_bound(cells: np.ndarray,
                       size: int = 64,
                       num_seeds: int = 6,
                       samples: int = 200_000,
                       seed: int = 0) -> NearestSeedBound:
    """Estimate how far one layer can get on the nearest seed, by Monte Carlo.

    Args:
        cells (np.ndarray): Of the kernel, (K, K).
        size (int): Side of the map.
        num_seeds (int): Seeds of a map.
        samples (int): Number of pixels, each of another map. The standard error is at most ``0.5 / sqrt(samples)``.
        seed (int): Of the random numbers.

    Returns:
        NearestSeedBound: Two accuracies, 0 to 1.
    """
    rng = np.random.default_rng(seed)
    offsets = rng.integers(size, size=(samples, num_seeds, 2)) - rng.integers(size, size=(samples, 1, 2))
    classes = rng.integers(len(COLORS), size=(samples, num_seeds))
    return _decode(cells, offsets, classes)


def _decode(cells: np.ndarray, offsets: np.ndarray, classes: np.ndarray) -> NearestSeedBound:
    """Decode the class of the nearest seed from offsets (samples, seeds, 2) and classes (samples, seeds)."""
    nearest = (offsets**2).sum(-1).argmin(1)[:, None]
    right = classes == np.take_along_axis(classes, nearest, 1)
    seen = cells_at(cells, offsets)
    of_nearest = np.take_along_axis(seen, nearest, 1)
    mean_square = np.append(_mean_squares(cells), np.inf)[seen]

    def accuracy(share: np.ndarray) -> float:
        return float(np.where(of_nearest[:, 0] >= 0, share, 1 / len(COLORS)).mean())

    same_cell, closest = seen == of_nearest, mean_square == mean_square.min(1, keepdims=True)
    # The best guess among the seeds of a cell is the most frequent class.
    counts = (same_cell[..., None] & (classes[..., None] == np.arange(len(COLORS)))).sum(1)
    return NearestSeedBound(
        accuracy(counts.max(1) / same_cell.sum(1)), accuracy((right & closest).sum(1) / closest.sum(1)))


def _mean_squares(cells: np.ndarray) -> np.ndarray:
    """Return the mean squared distance of each cell's offsets from the centre; the mean of no offsets is infinite."""
    axis = np.arange(cells.shape[0]) - cells.shape[0] // 2
    squares, inside = axis[:, None]**2 + axis**2, cells >= 0
    sums, counts = (np.bincount(cells[inside], weights) for weights in (squares[inside], None))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def offset_pairs_bound(cells: np.ndarray, exact: bool) -> list[float]:
    """Return how far one layer can get on offset pairs, for each range of the distance.

    The layer is shown the cell of the B in question, for offsets that are equally frequent: at a diagonal, or beside
    it with ``exact``, else nowhere. Distractors say nothing, by construction. So the best accuracy is
    ``sum(max(p, n)) / 2`` over the cells with the shares p and n of the positive and negative pairs in a cell.

    Args:
        cells (np.ndarray): Of the kernel, (K, K).
        exact (bool): Which of the two arms.

    Returns:
        list[float]: Accuracies, 0.5 to 1.

    Raises:
        ValueError: If a cell has offsets at a diagonal and along an axis, as then distractors do say something.
    """
    reach = RANGES[-1] - 1
    offsets = np.moveaxis(np.mgrid[-reach:reach + 1, -reach:reach + 1], 0, -1)
    diagonal, miss, axial, _ = relations(offsets, exact)
    seen, far = cells_at(cells, offsets), np.abs(offsets).max(-1)
    if not exact and set(seen[diagonal]) & set(seen[axial]) - {-1}:
        raise ValueError('cells must not have offsets both at a diagonal and along an axis')

    def shares(pairs: np.ndarray) -> np.ndarray:
        # The last entry is for pairs that are not seen.
        counts = np.bincount(seen[pairs] % (cells.max() + 2), minlength=cells.max() + 2)
        return counts / counts.sum()

    bounds = []
    for low, high in zip(RANGES, RANGES[1:]):
        within = (far >= low) & (far < high)
        positive = shares(diagonal & within)
        negative = shares(miss & within) if exact else np.eye(len(positive))[-1]
        bounds.append(float(np.maximum(positive, negative).sum() / 2))
    return bounds


def drawn_pairs_accuracy(cells: np.ndarray, exact: bool, maps: int = 1000) -> list[float]:
    """Return :func:`offset_pairs_bound` with the frequencies of the offsets in drawn maps.

    The bound takes all offsets of a range as equally frequent. On a map of finite size near ones are more frequent.

    Args:
        cells (np.ndarray): Of the kernel, (K, K).
        exact (bool): Which of the two arms.
        maps (int): Maps to draw.

    Returns:
        list[float]: Accuracies for each range of the distance, 0.5 to 1.
    """
    drawn = _drawn_pairs(exact, maps)
    asked = relations(drawn.offsets, exact)
    in_question = (asked.diagonal | asked.miss) & (np.abs(drawn.offsets).max(-1) == drawn.distance[:, None])
    cells_of_targets = np.where(in_question, cells_at(cells, drawn.offsets), -1)
    first = in_question.argmax(-1)[:, None]
    return _accuracy_of_table(np.take_along_axis(cells_of_targets, first, -1)[:, 0], drawn)


def border_accuracy(reach: int, exact: bool, maps: int = 1000) -> list[float]:
    """Return how often a decoder is right that only sees how far the map's border is, up to ``reach`` pixels.

    An A without a B within 25 pixels lies near the border more often than others: zeros around the map say something.

    Returns:
        list[float]: Accuracies for each range of the distance, 0.5 to 1.
    """
    drawn = _drawn_pairs(exact, maps)
    nearer, farther = np.sort(np.minimum(drawn.to_border, reach), -1).T
    return _accuracy_of_table(nearer * (reach + 1) + farther, drawn)


class _DrawnPairs(NamedTuple):
    """Every A of many maps: offsets to all B (A, B, 2), distances to the border (A, 2), distance and class (A, )."""

    offsets: np.ndarray
    to_border: np.ndarray
    distance: np.ndarray
    labels: np.ndarray


@lru_cache(maxsize=2)
def _drawn_pairs(exact: bool, maps: int) -> _DrawnPairs:
    drawn = []
    for index in range(maps):
        image, labels, distance = draw_offset_pairs(np.random.default_rng(index), exact=exact)
        pixels, targets = np.argwhere(labels != IGNORED), np.argwhere((image != BACKGROUND).any(-1))
        at = tuple(pixels.T)
        drawn.append((targets - pixels[:, None], np.minimum(pixels, np.array(labels.shape) - 1 - pixels), distance[at],
                      labels[at]))
    return _DrawnPairs(*map(np.concatenate, zip(*drawn)))


def _accuracy_of_table(shown: np.ndarray, drawn: _DrawnPairs) -> list[float]:
    """Return the accuracies of the best answers to each number shown, for each range of the distance."""
    accuracies = []
    for low, high in zip(RANGES, RANGES[1:]):
        within = (low <= drawn.distance) & (drawn.distance < high)
        numbers, which = np.unique(shown[within], return_inverse=True)
        counts = np.bincount(2 * which + drawn.labels[within], minlength=2 * len(numbers)).reshape(-1, 2)
        accuracies.append(float(counts.max(1).sum() / counts.sum()))
    return accuracies
