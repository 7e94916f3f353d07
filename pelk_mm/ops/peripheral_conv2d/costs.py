"""What a call costs on each backend: the small model behind the automatic choice.

The estimate is ``call + expansion * taps + (planes * plane + elements * (element + unit * work)) / threads``
nanoseconds, with ``taps`` those of the expanded kernels of all channels, which the dense path makes anew in each call
whatever the batch, ``planes`` the number of channels of all images, ``elements`` that of outputs (rows padded to whole
vectors where the backend does so) and ``work`` what it does for each of them: multiply-adds of the small matrix
products for the box backends, taps inside the map for the dense one. ``tools/benchmarks/backend_costs.py`` measures and
fits the constants and reports where the choice would lose to the dense path.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid

# (backend, function, kind) -> nanoseconds (call, expansion, plane, element, unit); see kind().
CPU_COSTS: dict[tuple[str, str, str], tuple[float, float, float, float, float]] = {
    ('boxes', 'forward', 'channels_last'): (167000.0, 0.0, 347.0, 4.39, 0.256),
    ('boxes', 'forward', 'planes'): (119000.0, 0.0, 582.0, 2.18, 0.215),
    ('boxes', 'theta_grad', 'channels_last'): (181000.0, 0.0, 295.0, 6.99, 0.356),
    ('boxes', 'theta_grad', 'planes'): (117000.0, 0.0, 593.0, 4.81, 0.304),
    ('native', 'forward', 'channels_last'): (14200.0, 0.0, 6.11, 1.68, 0.0254),
    ('native', 'forward', 'planes'): (19800.0, 0.0, 161.0, 0.74, 0.0224),
    ('native', 'theta_grad', 'channels_last'): (31300.0, 0.0, 426.0, 0.538, 0.0324),
    ('native', 'theta_grad', 'planes'): (40900.0, 0.0, 510.0, 0.222, 0.0271),
    ('reference', 'forward', 'channels_last, fast'): (90000.0, 1.24, 43.9, 0.0, 0.0263),
    ('reference', 'forward', 'channels_last, large'): (140000.0, 1.35, 0.0, 0.0, 0.0265),
    ('reference', 'forward', 'channels_last, tiny'): (51000.0, 10.2, 0.0, 0.0, 0.0747),
    ('reference', 'forward', 'planes, fast'): (91900.0, 1.04, 12.9, 0.849, 0.0256),
    ('reference', 'forward', 'planes, large'): (0.0, 12.9, 9970.0, 25.8, 0.651),
    ('reference', 'forward', 'planes, tiny'): (56800.0, 12.5, 0.0, 0.651, 0.107),
    ('reference', 'theta_grad', 'channels_last, fast'): (206000.0, 21.9, 482.0, 0.0, 0.251),
    ('reference', 'theta_grad', 'channels_last, large'): (0.0, 0.0, 0.0, 0.0, 0.8),
    ('reference', 'theta_grad', 'channels_last, tiny'): (88000.0, 5.81, 0.0, 0.0, 0.0659),
    ('reference', 'theta_grad', 'planes, fast'): (312000.0, 0.0, 145.0, 0.0, 0.8),
    ('reference', 'theta_grad', 'planes, large'): (434000.0, 0.0, 0.0, 45.5, 0.627),
    ('reference', 'theta_grad', 'planes, tiny'): (83800.0, 15.1, 11.1, 0.0, 0.189),
}


def cheapest(backends: tuple[str, ...], function: str, x: Tensor, grid: SharingGrid) -> str:
    """The backend that is expected to be fastest for a call on the CPU.

    Args:
        backends (tuple[str, ...]): The names to choose among.
        function (str): ``'forward'`` or ``'theta_grad'``.
        x (Tensor): (N, C, H, W).
        grid (SharingGrid): The cells.
    """
    return _cheapest(backends, function, tuple(x.shape), is_channels_last(x), torch.get_num_threads(), grid)


@lru_cache(maxsize=4096)
def _cheapest(backends: tuple[str, ...], function: str, shape: tuple[int, ...], channels_last: bool, threads: int,
              grid: SharingGrid) -> str:
    costs = {name: cpu_cost(name, function, shape, channels_last, threads, grid) for name in backends}
    if 'reference' in costs:
        costs['reference'] *= _DENSE_HANDICAP
    return min(costs, key=costs.__getitem__)


# The estimates are good to some 25 %: in doubt the dense path is taken, so that nobody pays for a wrong guess.
_DENSE_HANDICAP = 0.75


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side, as in a slice of a channels-last tensor too."""
    return x.stride(1) == 1 and x.shape[1] > 1


def cpu_cost(backend: str, function: str, shape: tuple[int, ...], channels_last: bool, threads: int,
             grid: SharingGrid) -> float:
    """Estimated nanoseconds of a call with so many threads; arguments as :func:`cheapest`, of a tensor's properties."""
    constants = CPU_COSTS[backend, function, kind(backend, channels_last, grid)]
    return sum(constant * term for constant, term in zip(constants, terms(backend, function, shape, threads, grid)))


def terms(backend: str, function: str, shape: tuple[int, ...], threads: int,
          grid: SharingGrid) -> tuple[float, float, float, float, float]:
    """What the five constants of a call are multiplied with, see the head of this file."""
    elements = num_elements(backend, shape)
    taps = shape[1] * grid.kernel_size**2 if backend == 'reference' else 0
    work = work_per_element(backend, function, shape, grid)
    return 1, taps, shape[0] * shape[1] / threads, elements / threads, elements * work / threads


def kind(backend: str, channels_last: bool, grid: SharingGrid) -> str:
    """The regime of a call: its layout, and for the dense path what code oneDNN has for the kernel's size."""
    layout = 'channels_last' if channels_last else 'planes'
    if backend != 'reference':
        return layout
    size = 'tiny' if grid.kernel_size <= _LARGEST_TINY_KERNEL else (
        'large' if grid.kernel_size > _LARGEST_FAST_KERNEL[layout] else 'fast')
    return f'{layout}, {size}'


_LARGEST_TINY_KERNEL = 3
# oneDNN's depthwise kernels take over up to these sizes.
_LARGEST_FAST_KERNEL = dict(planes=13, channels_last=31)


def num_elements(backend: str, shape: tuple[int, ...]) -> int:
    """Outputs, with rows padded to whole vectors where the backend does so."""
    batch, channels, height, width = shape
    return batch * channels * height * (-(-width // 16) * 16 if backend == 'native' else width)


def work_per_element(backend: str, function: str, shape: tuple[int, ...], grid: SharingGrid) -> float:
    """Multiply-adds or taps for each output, see the head of this file."""
    height, width = shape[-2:]
    if backend == 'reference' and function == 'theta_grad':
        # Unlike the forward, oneDNN's gradient does not skip the taps that lie outside.
        return grid.kernel_size**2
    if backend == 'reference':
        return _taps_inside(grid.kernel_size, height) * _taps_inside(grid.kernel_size, width)
    cells = 1
    for size in (height, width):
        cells *= sum(start < size and start + taps > 1 - size for start, taps in zip(grid.starts, grid.widths))
    return cells


def _taps_inside(kernel_size: int, size: int) -> float:
    """Mean number of a kernel's taps along one axis that lie inside the map."""
    half = kernel_size // 2
    return sum(max(0, size - abs(offset)) for offset in range(-half, half + 1)) / size
