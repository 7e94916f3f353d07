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
    ('boxes', 'forward', 'any'): (0.0, 962.0, 4.64, 0.291),
    ('boxes', 'theta_grad', 'any'): (0.0, 1220.0, 6.58, 0.413),
    ('native', 'forward', 'any'): (0.0, 239.0, 1.03, 0.0354),
    ('native', 'theta_grad', 'any'): (16300.0, 605.0, 0.59, 0.0387),
    ('reference', 'forward', 'channels_last'): (75700.0, 123.0, 0.0, 0.0355),
    ('reference', 'forward', 'channels_last, large'): (1440000.0, 918.0, 0.0, 0.0179),
    ('reference', 'forward', 'planes'): (94500.0, 164.0, 0.622, 0.0301),
    ('reference', 'forward', 'planes, large'): (0.0, 18700.0, 0.0, 1.25),
    ('reference', 'theta_grad', 'channels_last'): (0.0, 101.0, 0.0, 0.263),
    ('reference', 'theta_grad', 'channels_last, large'): (0.0, 0.0, 0.0, 1.02),
    ('reference', 'theta_grad', 'planes'): (0.0, 51.3, 0.0, 0.66),
    ('reference', 'theta_grad', 'planes, large'): (628000.0, 0.0, 16.6, 1.02),
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
    return min(backends, key=lambda name: cpu_cost(name, function, shape, channels_last, grid))


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side, as in a slice of a channels-last tensor too."""
    return x.stride(1) == 1 and x.shape[1] > 1


def cpu_cost(backend: str, function: str, shape: tuple[int, ...], channels_last: bool, grid: SharingGrid) -> float:
    """Estimated nanoseconds on one core; arguments as :func:`cheapest`, of a tensor's shape and layout."""
    call, plane, element, unit = CPU_COSTS[backend, function, kind(backend, channels_last, grid)]
    work = work_per_element(backend, function, shape, grid)
    return call + shape[0] * shape[1] * plane + num_elements(backend, shape) * (element + unit * work)


def kind(backend: str, channels_last: bool, grid: SharingGrid) -> str:
    """The regime of a backend: the dense path has one for each layout and for kernels that it has no fast path for."""
    if backend != 'reference':
        return 'any'
    layout = 'channels_last' if channels_last else 'planes'
    return f'{layout}, large' if grid.kernel_size > _LARGEST_FAST_KERNEL[layout] else layout


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
