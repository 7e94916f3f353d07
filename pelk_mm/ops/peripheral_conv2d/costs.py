"""What a call costs on each backend: the small model behind the automatic choice.

The estimate is ``call + planes * plane + elements * (element + unit * work)`` nanoseconds on one CPU core, with
``planes`` the number of channels of all images, ``elements`` that of outputs (rows padded to whole vectors where the
backend does so) and ``work`` what it does for each of them: multiply-adds of the small matrix products for the box
backends, taps inside the map for the dense one. ``tools/benchmarks/backend_costs.py`` measures and fits the constants
and reports where the choice would lose to the dense path.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from ..sharing_grid import SharingGrid

# (backend, function, kind) -> nanoseconds (call, plane, element, unit); see kind().
CPU_COSTS: dict[tuple[str, str, str], tuple[float, float, float, float]] = {
    ('boxes', 'forward', 'channels_last'): (5880.0, 738.0, 13.1, 0.201),
    ('boxes', 'forward', 'planes'): (0.0, 1310.0, 5.67, 0.209),
    ('boxes', 'theta_grad', 'channels_last'): (0.0, 1300.0, 15.8, 0.284),
    ('boxes', 'theta_grad', 'planes'): (0.0, 1520.0, 10.1, 0.295),
    ('native', 'forward', 'channels_last'): (947.0, 254.0, 1.42, 0.0243),
    ('native', 'forward', 'planes'): (27500.0, 300.0, 1.28, 0.0234),
    ('native', 'theta_grad', 'channels_last'): (46800.0, 642.0, 0.702, 0.0268),
    ('native', 'theta_grad', 'planes'): (44000.0, 843.0, 0.554, 0.0312),
    ('reference', 'forward', 'channels_last, fast'): (107000.0, 209.0, 0.0, 0.0254),
    ('reference', 'forward', 'channels_last, large'): (863000.0, 102.0, 0.0, 0.0185),
    ('reference', 'forward', 'channels_last, tiny'): (99300.0, 77.2, 0.28, 0.0),
    ('reference', 'forward', 'planes, fast'): (162000.0, 40.3, 0.0, 0.0301),
    ('reference', 'forward', 'planes, large'): (0.0, 17700.0, 24.9, 1.07),
    ('reference', 'forward', 'planes, tiny'): (97600.0, 146.0, 0.813, 0.129),
    ('reference', 'theta_grad', 'channels_last, fast'): (451000.0, 604.0, 0.0, 0.283),
    ('reference', 'theta_grad', 'channels_last, large'): (0.0, 0.0, 0.0, 1.09),
    ('reference', 'theta_grad', 'channels_last, tiny'): (201000.0, 94.7, 0.0, 0.00288),
    ('reference', 'theta_grad', 'planes, fast'): (402000.0, 856.0, 0.0, 1.09),
    ('reference', 'theta_grad', 'planes, large'): (1070000.0, 0.0, 0.0, 0.901),
    ('reference', 'theta_grad', 'planes, tiny'): (242000.0, 80.6, 0.0, 0.0975),
}


def cheapest(backends: tuple[str, ...], function: str, x: Tensor, grid: SharingGrid) -> str:
    """The backend that is expected to be fastest for a call on the CPU.

    Args:
        backends (tuple[str, ...]): The names to choose among.
        function (str): ``'forward'`` or ``'theta_grad'``.
        x (Tensor): (N, C, H, W).
        grid (SharingGrid): The cells.
    """
    return _cheapest(backends, function, tuple(x.shape), is_channels_last(x), grid)


@lru_cache(maxsize=4096)
def _cheapest(backends: tuple[str, ...], function: str, shape: tuple[int, ...], channels_last: bool,
              grid: SharingGrid) -> str:
    costs = {name: cpu_cost(name, function, shape, channels_last, grid) for name in backends}
    if 'reference' in costs:
        costs['reference'] *= _DENSE_HANDICAP
    return min(costs, key=costs.__getitem__)


# The estimates are good to some 20 %: in doubt the dense path is taken, so that nobody pays for a wrong guess.
_DENSE_HANDICAP = 0.8


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side, as in a slice of a channels-last tensor too."""
    return x.stride(1) == 1 and x.shape[1] > 1


def cpu_cost(backend: str, function: str, shape: tuple[int, ...], channels_last: bool, grid: SharingGrid) -> float:
    """Estimated nanoseconds on one core; arguments as :func:`cheapest`, of a tensor's shape and layout."""
    call, plane, element, unit = CPU_COSTS[backend, function, kind(backend, channels_last, grid)]
    work = work_per_element(backend, function, shape, grid)
    return call + shape[0] * shape[1] * plane + num_elements(backend, shape) * (element + unit * work)


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
