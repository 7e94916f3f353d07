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
    ('boxes', 'forward', 'channels_last'): (126000.0, 0.0, 296.0, 3.04, 0.228),
    ('boxes', 'forward', 'planes'): (99700.0, 0.0, 462.0, 0.984, 0.193),
    ('boxes', 'theta_grad', 'channels_last'): (138000.0, 0.0, 368.0, 4.13, 0.299),
    ('boxes', 'theta_grad', 'planes'): (105000.0, 0.0, 501.0, 2.42, 0.263),
    ('native', 'forward', 'channels_last'): (16300.0, 0.0, 48.5, 1.1, 0.0245),
    ('native', 'forward', 'planes'): (22900.0, 0.0, 188.0, 0.551, 0.0222),
    ('native', 'theta_grad', 'channels_last'): (23100.0, 0.0, 323.0, 0.353, 0.0375),
    ('native', 'theta_grad', 'planes'): (36700.0, 0.0, 530.0, 0.0, 0.0302),
    ('reference', 'forward', 'channels_last, fast'): (65800.0, 1.05, 43.3, 0.0, 0.0228),
    ('reference', 'forward', 'channels_last, large'): (141000.0, 0.958, 0.0, 0.788, 0.0211),
    ('reference', 'forward', 'channels_last, tiny'): (48400.0, 3.09, 11.9, 0.0, 0.0417),
    ('reference', 'forward', 'planes, fast'): (69800.0, 0.943, 11.4, 0.757, 0.0223),
    ('reference', 'forward', 'planes, large'): (0.0, 12.3, 8720.0, 21.3, 0.792),
    ('reference', 'forward', 'planes, tiny'): (53700.0, 8.08, 3.86, 0.0, 0.119),
    ('reference', 'theta_grad', 'channels_last, fast'): (94400.0, 20.2, 491.0, 0.0, 0.236),
    ('reference', 'theta_grad', 'channels_last, large'): (0.0, 0.0, 0.0, 0.0, 0.774),
    ('reference', 'theta_grad', 'channels_last, tiny'): (78600.0, 3.02, 3.82, 0.0, 0.0319),
    ('reference', 'theta_grad', 'planes, fast'): (184000.0, 0.0, 0.0, 2.66, 0.774),
    ('reference', 'theta_grad', 'planes, large'): (279000.0, 0.0, 0.0, 27.0, 0.659),
    ('reference', 'theta_grad', 'planes, tiny'): (78500.0, 4.56, 18.0, 0.0, 0.124),
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


# The estimates are good to some 20 %: in doubt the dense path is taken, so that nobody pays for a wrong guess.
_DENSE_HANDICAP = 0.8


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
