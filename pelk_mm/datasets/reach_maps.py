"""Maps on which the reach and the form of a kernel decide, drawn from a seed; without files and without mmseg.

*Nearest seed*: coloured pixels on an empty map; each pixel has the class of the nearest one. *Offset pairs*: pixels B
on an empty map; a pixel A is positive if a B lies at a diagonal offset from it. A is where the question is asked.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

IGNORED = 255
BACKGROUND = 128
# The corners of a tetrahedron around the background, so that no class is between two others.
COLORS = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
# Ranges of the distance from an A to its B: 4 to 8, 9 to 15, 16 to 25 pixels.
RANGES = (4, 9, 16, 26)
# An A that lies next to the diagonal of a B, but not on it, is at most so many pixels away from it.
MAX_MISS = 3
# The distance of what is not there.
NONE = np.uint8(255)
# With five B on 64 x 64 pixels one draw in five has groups in all ranges.
MAX_DRAWS = 2000


class ReachMap(NamedTuple):
    """A map with its labels.

    Attributes:
        image (np.ndarray): (H, W, 3), uint8.
        labels (np.ndarray): (H, W), uint8: the class of each pixel, ``IGNORED`` where there is no question.
        distance (np.ndarray): (H, W), float32: how many pixels away the answer is; 0 where there is no question.
    """

    image: np.ndarray
    labels: np.ndarray
    distance: np.ndarray


def draw_nearest_seed(rng: np.random.Generator, size: int = 64, num_seeds: int = 6) -> ReachMap:
    """Draw seeds of four classes; each pixel takes the class of the nearest one.

    The distance is Euclidean. Pixels with equally near seeds of different classes are ignored.

    Args:
        rng (np.random.Generator): Source of everything random.
        size (int): Side of the map.
        num_seeds (int): Number of seeds, on different pixels.

    Returns:
        ReachMap: The map.
    """
    seeds = _draw_pixels(rng, size, num_seeds)
    classes = rng.integers(len(COLORS), size=num_seeds)
    image = np.full((size, size, 3), BACKGROUND, np.uint8)
    image[seeds[:, 0], seeds[:, 1]] = COLORS[classes]
    squares = (_offsets(seeds, size)**2).sum(-1)
    nearest = squares.min(0)
    labels = classes[squares.argmin(0)]
    ambiguous = ((squares == nearest) & (classes[:, None, None] != labels)).any(0)
    return ReachMap(image, np.where(ambiguous, IGNORED, labels).astype(np.uint8), np.sqrt(nearest).astype(np.float32))


class Relations(NamedTuple):
    """Relation of B to A, for each offset; at most one is true.

    Attributes:
        diagonal (np.ndarray): bool, at a diagonal offset.
        miss (np.ndarray): bool, next to the diagonal, of the exact arm only.
        axial (np.ndarray): bool, along an axis: a distractor.
        outside (np.ndarray): bool, farther away than any pair.
    """

    diagonal: np.ndarray
    miss: np.ndarray
    axial: np.ndarray
    outside: np.ndarray


def relations(offsets: np.ndarray, exact: bool) -> Relations:
    """Say how B lies to A. Of an offset, far is the larger of ``|dy|`` and ``|dx|``, and near the smaller one.

    Pairs have far in 4 ... 25. B is at a diagonal offset if near is at least 3/4 of far, with ``exact`` if near equals
    far; it is a miss if near is 1 to 3 less; it is along an axis if near is at most 1/4 of far.

    Args:
        offsets (np.ndarray): (..., 2), int, from A to B.
        exact (bool): Which of the two arms.

    Returns:
        Relations: Four of shape (...).
    """
    far, near = np.abs(offsets).max(-1), np.abs(offsets).min(-1)
    pair = (far >= RANGES[0]) & (far < RANGES[-1])
    miss = pair & exact & (far > near) & (far - near <= MAX_MISS)
    return Relations(pair & (near == far if exact else 4 * near >= 3 * far), miss,
                     pair & ~miss & (4 * near <= far), far >= RANGES[-1])


def draw_offset_pairs(rng: np.random.Generator,
                      size: int = 64,
                      exact: bool = False,
                      num_targets: int = 5,
                      max_groups: int = 3) -> ReachMap:
    """Draw pixels B, and choose pixels A; an A is positive if a B lies at a diagonal offset from it.

    The A come in groups of four for each of the three ranges of the distance: with and without a B at a diagonal
    offset, each with and without a B along an axis, all in this range. So neither the distractors along the axes nor
    the distance say anything about the class, and half of the A are positive. With ``exact`` the negative ones have a
    B next to the diagonal instead. Every map has equally many groups in each range. Only A have a class; they are not
    drawn, as the places of the others would say something about it.

    Args:
        rng (np.random.Generator): Source of everything random.
        size (int): Side of the map, at least 40.
        exact (bool): Whether the offset must be diagonal to the pixel; otherwise the tolerance is a quarter of the
            distance.
        num_targets (int): Number of B.
        max_groups (int): Groups of four for each range, at most.

    Returns:
        ReachMap: The map; the distance is that of the B in question, or, without one, that of its group's positive A.

    Raises:
        ValueError: If the map has no room for a group in each range.
    """
    for _ in range(MAX_DRAWS):
        targets = _draw_pixels(rng, size, num_targets)
        strata, distances = _strata(targets, size, exact)
        groups = min(max_groups, strata.sum((2, 3)).min())
        chosen = _choose(rng, strata, groups) if groups else None
        if chosen is not None:
            break
    else:
        raise ValueError(f'size must leave room for offsets of up to {RANGES[-1] - 1} pixels, got {size} with '
                         f'{num_targets} targets')
    image = np.full((size, size, 3), BACKGROUND, np.uint8)
    image[targets[:, 0], targets[:, 1]] = COLORS[0]
    labels = np.full((size, size), IGNORED, np.uint8)
    distance = np.zeros((size, size), np.float32)
    for pixels in chosen:
        for stratum, (y, x) in enumerate(pixels):
            labels[y, x] = stratum < 2
            at = distances[stratum][y, x]
            distance[y, x] = distances[0][tuple(pixels[0])] if at == NONE else at
    return ReachMap(image, labels, distance)


@lru_cache
def _tables(size: int, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate relations for each offset between two pixels of a map, with 0 in the middle.

    Return the distances of diagonal B, misses and B on an axis, (3, 2 * size - 1, 2 * size - 1), uint8 and ``NONE``
    elsewhere, and which offsets are of no kind, bool.
    """
    offsets = np.moveaxis(np.mgrid[1 - size:size, 1 - size:size], 0, -1)
    diagonal, miss, axial, outside = relations(offsets, exact)
    far = np.abs(offsets).max(-1).astype(np.uint8)
    return np.where((diagonal, miss, axial), far, NONE), ~(diagonal | miss | axial | outside)


def _strata(targets: np.ndarray, size: int, exact: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return which pixels may be an A, (ranges, 4, H, W): positive, negative, each with and without B on an axis.

    Also return the distance of the B in question for each of the four, (H, W), ``NONE`` if there is no such B.
    """
    distances, of_no_kind = _tables(size, exact)
    # The offset from a pixel to a B has the same relation as the offset from the B to the pixel.
    windows = [(slice(size - 1 - y, 2 * size - 1 - y), slice(size - 1 - x, 2 * size - 1 - x)) for y, x in targets]
    at_diagonal, at_miss, at_axis = np.min([distances[:, rows, columns] for rows, columns in windows], 0)
    clear = ~np.any([of_no_kind[window] for window in windows], 0)
    positive = clear & (at_miss == NONE)
    negative = clear & (at_diagonal == NONE)
    off_axis = at_axis == NONE
    strata = []
    for low, high in zip(RANGES, RANGES[1:]):
        diagonal, missed, axial = ((low <= at) & (at < high) for at in (at_diagonal, at_miss, at_axis))
        of_range = (positive & diagonal, negative & missed if exact else negative)
        strata.append([pixels & chosen for pixels in of_range for chosen in (axial, off_axis)])
    in_question = at_miss if exact else at_axis
    return np.array(strata), [at_diagonal, at_diagonal, in_question, in_question]


def _choose(rng: np.random.Generator, strata: np.ndarray, groups: int) -> list[np.ndarray] | None:
    """Choose different pixels for ``groups`` groups of each range, (4, 2) each; None if there are too few."""
    size = strata.shape[-1]
    free = np.ones(size * size, bool)
    chosen: list[np.ndarray] = []
    for of_range in strata.reshape(len(strata), 4, -1):
        picks = []
        for stratum in of_range:
            candidates = np.flatnonzero(stratum & free)
            if len(candidates) < groups:
                return None
            picks.append(rng.choice(candidates, groups, replace=False))
            free[picks[-1]] = False
        chosen += [np.stack(np.unravel_index(group, (size, size)), -1) for group in np.array(picks).T]
    return chosen


def _draw_pixels(rng: np.random.Generator, size: int, number: int) -> np.ndarray:
    """Return so many different pixels, (number, 2)."""
    return np.stack(np.unravel_index(rng.choice(size * size, number, replace=False), (size, size)), -1)


def _offsets(points: np.ndarray, size: int) -> np.ndarray:
    """Return the offset from each pixel to each point, (points, H, W, 2)."""
    return points[:, None, None] - np.moveaxis(np.mgrid[:size, :size], 0, -1)
