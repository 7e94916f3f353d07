"""Estimated time of a call on each backend: the small model behind the automatic choice on the CPU.

    nanoseconds = call + expansion * taps + (plane * planes + element * elements + unit * elements * work) / threads

| constant | regressor | of a call |
|---|---|---|
| call | 1 | |
| expansion | taps | C * K * K: the dense path expands every kernel again in each call; 0 for the others |
| plane | planes | N * C |
| element | elements | N * C * H * W, rows or channels padded to full vectors where the backend pads them |
| unit | elements * work | work of an element: taps inside the map (dense path), else cells, see work_per_element |

``tools/benchmarks/backend_costs.py`` measures and fits the constants and reports where the choice loses to the dense
path. A backend without constants is not chosen; it can be named.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid

logger = logging.getLogger(__name__)

# (backend, function, regime) -> nanoseconds (call, expansion, plane, element, unit); see regime().
CPU_COSTS: dict[tuple[str, str, str], tuple[float, float, float, float, float]] = {
    ('box_sums', 'forward', 'channels_last'): (203000.0, 0.0, 410.0, 5.47, 0.276),
    ('box_sums', 'forward', 'planes'): (181000.0, 0.0, 857.0, 1.6, 0.236),
    ('box_sums', 'theta_grad', 'channels_last'): (208000.0, 0.0, 837.0, 8.73, 0.395),
    ('box_sums', 'theta_grad', 'planes'): (115000.0, 0.0, 1570.0, 4.28, 0.367),
    ('native', 'forward', 'channels_last'): (21100.0, 0.0, 32.6, 0.643, 0.0261),
    ('native', 'forward', 'planes'): (22700.0, 0.0, 29.7, 0.689, 0.0243),
    ('native', 'theta_grad', 'channels_last'): (29000.0, 0.0, 145.0, 0.14, 0.0268),
    ('native', 'theta_grad', 'planes'): (33200.0, 0.0, 159.0, 0.0394, 0.0274),
    ('reference', 'forward', 'channels_last, fast'): (80600.0, 1.93, 46.7, 0.0, 0.0279),
    ('reference', 'forward', 'channels_last, large'): (0.0, 1.48, 168.0, 3.64, 0.029),
    ('reference', 'forward', 'planes, fast'): (96700.0, 1.75, 0.0, 1.13, 0.0277),
    ('reference', 'forward', 'planes, large'): (0.0, 15.6, 13000.0, 0.0, 0.668),
    ('reference', 'theta_grad', 'channels_last, fast'): (65400.0, 41.1, 330.0, 0.402, 0.275),
    ('reference', 'theta_grad', 'channels_last, large'): (0.0, 0.0, 0.0, 0.0, 0.968),
    ('reference', 'theta_grad', 'planes, fast'): (125000.0, 4.8, 143.0, 0.0, 0.968),
    ('reference', 'theta_grad', 'planes, large'): (0.0, 5.87, 0.0, 43.8, 0.742),
}


def cheapest(backends: tuple[str, ...], function: str, x: Tensor, grid: SharingGrid) -> str:
    """Return the backend that is expected to be fastest for a call on the CPU.

    Args:
        backends (tuple[str, ...]): The names to choose among, at least one. One without constants is skipped.
        function (str): ``'forward'`` or ``'theta_grad'``.
        x (Tensor): (N, C, H, W).
        grid (SharingGrid): The cells.
    """
    return _cheapest(backends, function, tuple(x.shape), is_channels_last(x), torch.get_num_threads(), grid)


@lru_cache(maxsize=4096)
def _cheapest(backends: tuple[str, ...], function: str, shape: tuple[int, ...], channels_last: bool, threads: int,
              grid: SharingGrid) -> str:
    if grid.kernel_size <= ALWAYS_DENSE and 'reference' in backends:
        return 'reference'
    costs = {name: cpu_cost(name, function, shape, channels_last, threads, grid) for name in backends}
    for name in (name for name, cost in costs.items() if cost == math.inf):
        logger.debug('peripheral_conv2d: backend %r is not used: it has no row in CPU_COSTS', name)
    if 'reference' in costs:
        costs['reference'] *= _DENSE_ADVANTAGE
    return min(costs, key=costs.__getitem__)


# Estimates are good to about 25 %; on near-ties take the dense path.
_DENSE_ADVANTAGE = 0.75
# A kernel of 3x3 has no outer cells, and oneDNN has code of its own for it.
ALWAYS_DENSE = 3


def is_channels_last(x: Tensor) -> bool:
    """Return whether the channels of a pixel are neighbours in memory, as in a slice of a channels-last tensor."""
    return x.stride(1) == 1 and x.shape[1] > 1


def cpu_cost(backend: str, function: str, shape: tuple[int, ...], channels_last: bool, threads: int,
             grid: SharingGrid) -> float:
    """Estimate the nanoseconds of a call, infinite without constants; arguments as :func:`cheapest`, of a tensor."""
    constants = CPU_COSTS.get((backend, function, regime(backend, channels_last, grid)))
    if constants is None:
        return math.inf
    values = regressors(backend, function, shape, threads, grid)
    return sum(constant * value for constant, value in zip(constants, values))


def regressors(backend: str, function: str, shape: tuple[int, ...], threads: int,
               grid: SharingGrid) -> tuple[float, float, float, float, float]:
    """Return the regressors of the five constants, see the head of this file."""
    elements = num_elements(backend, shape, grid)
    taps = shape[1] * grid.kernel_size**2 if backend == 'reference' else 0
    work = work_per_element(backend, function, shape, grid)
    return 1, taps, shape[0] * shape[1] / threads, elements / threads, elements * work / threads


def regime(backend: str, channels_last: bool, grid: SharingGrid) -> str:
    """Return the name of the calls that share constants: layout, and for the dense path oneDNN's kernel sizes."""
    layout = 'channels_last' if channels_last else 'planes'
    if backend != 'reference':
        return layout
    size = 'large' if grid.kernel_size > _LARGEST_FAST_KERNEL[layout] else 'fast'
    return f'{layout}, {size}'


# oneDNN has special depthwise code up to these sizes.
_LARGEST_FAST_KERNEL = dict(planes=13, channels_last=31)


def num_elements(backend: str, shape: tuple[int, ...], grid: SharingGrid) -> int:
    """Count the outputs, with rows or channels padded to full vectors where the backend pads them."""
    batch, channels, height, width = shape
    if backend != 'native':
        return batch * channels * height * width
    if has_lanes(shape, grid):
        return batch * _full(channels) * height * width
    return batch * channels * height * _full(width)


def work_per_element(backend: str, function: str, shape: tuple[int, ...], grid: SharingGrid) -> float:
    """Count the multiply-adds of an output: reachable k' * k' cells; their mean number if outer ones are skipped."""
    height, width = shape[-2:]
    if backend == 'reference' and function == 'theta_grad':
        # Unlike the forward, oneDNN's gradient does not skip the taps that lie outside.
        return grid.kernel_size**2
    if backend == 'reference':
        return _taps_inside(grid.kernel_size, height) * _taps_inside(grid.kernel_size, width)
    if backend == 'native' and has_lanes(shape, grid):
        return _pairs(grid, height) * _pairs(grid, width) / (height * width)
    return len(grid.reachable(height)) * len(grid.reachable(width))


def has_lanes(shape: tuple[int, ...], grid: SharingGrid) -> bool:
    """Return whether the native backend's vectors hold a pixel of several channels: the form with less to multiply.

    For vectors of 16 elements, as in AVX-512. Maps whose boxes do not fit the cache, over some 140 columns with the
    paper's kernels, take the other form; counts of the two differ little there.
    """
    _, channels, height, width = shape
    lanes = _full(channels) * _pairs(grid, height) * _pairs(grid, width)
    return lanes <= channels * height * _full(width) * len(grid.reachable(height)) * len(grid.reachable(width))


def _full(size: int) -> int:
    return -(-size // 16) * 16


def _pairs(grid: SharingGrid, size: int) -> int:
    """Count the pairs of an output on an axis and a cell that reaches the map from there."""
    return sum(max(0, size - max(0, start, 1 - start - width)) for start, width in zip(grid.starts, grid.widths))


def _taps_inside(kernel_size: int, size: int) -> float:
    """Return the mean number of a kernel's taps along one axis that lie inside the map."""
    half = kernel_size // 2
    return sum(max(0, size - abs(offset)) for offset in range(-half, half + 1)) / size
