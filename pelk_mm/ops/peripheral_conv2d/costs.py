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
    ('box_sums', 'forward', 'channels_last'): (253000.0, 0.0, 295.0, 6.7, 0.3),
    ('box_sums', 'forward', 'planes'): (174000.0, 0.0, 694.0, 3.14, 0.26),
    ('box_sums', 'theta_grad', 'channels_last'): (287000.0, 0.0, 615.0, 10.4, 0.448),
    ('box_sums', 'theta_grad', 'planes'): (182000.0, 0.0, 930.0, 6.76, 0.413),
    ('native', 'forward', 'channels_last'): (30800.0, 0.0, 30.1, 0.494, 0.0293),
    ('native', 'forward', 'planes'): (27400.0, 0.0, 19.9, 0.704, 0.0295),
    ('native', 'theta_grad', 'channels_last'): (39800.0, 0.0, 87.8, 0.0, 0.031),
    ('native', 'theta_grad', 'planes'): (38900.0, 0.0, 90.6, 0.152, 0.0291),
    ('reference', 'forward', 'channels_last, fast'): (94200.0, 2.22, 45.9, 0.0, 0.0303),
    ('reference', 'forward', 'channels_last, large'): (193000.0, 1.94, 119.0, 0.0, 0.0297),
    ('reference', 'forward', 'planes, fast'): (120000.0, 2.03, 0.0, 0.934, 0.032),
    ('reference', 'forward', 'planes, large'): (0.0, 18.6, 14700.0, 0.0, 0.794),
    ('reference', 'theta_grad', 'channels_last, fast'): (183000.0, 44.1, 461.0, 0.0, 0.303),
    ('reference', 'theta_grad', 'channels_last, large'): (0.0, 0.0, 0.0, 0.0, 1.06),
    ('reference', 'theta_grad', 'planes, fast'): (314000.0, 7.21, 0.0, 0.0, 1.06),
    ('reference', 'theta_grad', 'planes, large'): (0.0, 3.61, 0.0, 38.4, 0.937),
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
    """Whether the channels of a pixel are neighbours in memory, as in a slice of a channels-last tensor."""
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
    """Whether the native backend's vectors hold a pixel of several channels: the form with less to multiply.

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
    """Mean number of a kernel's taps along one axis that lie inside the map."""
    half = kernel_size // 2
    return sum(max(0, size - abs(offset)) for offset in range(-half, half + 1)) / size
