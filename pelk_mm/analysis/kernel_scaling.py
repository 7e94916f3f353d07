"""Growth of a network's parameters with its kernels (PeLK, Fig. 2 and 6)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import nn

from pelk_mm.ops import SharingGrid

from .figures import draw_curves


def taps_per_channel(kernel_size: int, center: int = 5, stripe_width: int = 5) -> dict[str, int]:
    """Return the number of weights that one channel of a depthwise convolution stores.

    Args:
        kernel_size (int): K, odd.
        center (int): Side of the fine-grained centre of the peripheral convolution. Defaults to 5.
        stripe_width (int): N of the two stripes, K x N and N x K, which replace a kernel in SLaK. Defaults to 5.

    Returns:
        dict[str, int]: ``dense``: K * K, ``stripe``: 2 * K * N, ``peripheral``: k' * k'.

    Raises:
        ValueError: If a size is even or not positive, or K is below ``center`` or ``stripe_width``.
    """
    if stripe_width < 1 or stripe_width % 2 == 0 or kernel_size < stripe_width:
        raise ValueError(f'stripe_width must be odd and at most kernel_size, {kernel_size}, got {stripe_width}')
    cells = SharingGrid.from_kernel_size(kernel_size, center).num_cells
    return dict(dense=kernel_size**2, stripe=2 * kernel_size * stripe_width, peripheral=cells**2)


def scale_kernels(model: nn.Module,
                  kernel_sizes: Sequence[int],
                  center: int = 5,
                  stripe_width: int = 5) -> list[dict[str, int]]:
    """Count the parameters of a model with every depthwise kernel replaced by one of each size.

    Args:
        model (nn.Module): With depthwise ``nn.Conv2d``, for instance ConvNeXt; best on the meta device. It is left as
            it is.
        kernel_sizes (Sequence[int]): The K to try, odd.
        center (int): See :func:`taps_per_channel`.
        stripe_width (int): See :func:`taps_per_channel`.

    Returns:
        list[dict[str, int]]: For each K ``kernel_size``, and parameters with kernels of each kind of
        :func:`taps_per_channel`. Biases stay one for each channel.

    Raises:
        ValueError: If a size is not allowed, or the model has no depthwise convolution.
    """
    kernels = [
        module.weight for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    ]
    if not kernels:
        raise ValueError(f'{type(model).__name__} has no depthwise convolution')
    channels = sum(kernel.shape[0] for kernel in kernels)
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(kernel.numel() for kernel in kernels)
    rows = []
    for size in kernel_sizes:
        taps = taps_per_channel(size, center, stripe_width)
        rows.append(dict(kernel_size=size, **{kind: rest + channels * count for kind, count in taps.items()}))
    return rows


def draw_scaling(rows: Sequence[dict[str, int]], name: str, center: int = 5, stripe_width: int = 5) -> Figure:
    """Draw the parameters of a kernel and of a network, called ``name``, against the kernel's size.

    ``rows`` are those that :func:`scale_kernels` returns for the same ``center`` and ``stripe_width``.
    """
    figure = Figure(figsize=(10, 4), layout=ConstrainedLayoutEngine(w_pad=0.12))
    one, whole = figure.subplots(1, 2)
    sizes = [row['kernel_size'] for row in rows]
    kernels = [taps_per_channel(size, center, stripe_width) for size in sizes]
    labels = dict(form_labels(stripe_width), peripheral=f'peripheral, centre {center} x {center}')
    draw_curves(one, {label: (sizes, [kernel[kind] for kernel in kernels]) for kind, label in labels.items()})
    draw_curves(whole, {label: (sizes, [row[kind] / 1e6 for row in rows]) for kind, label in labels.items()})
    one.set(yscale='log', ylabel='parameters of one channel')
    whole.set(ylabel=f'parameters of {name} in millions')
    whole.set_ylim(bottom=0)
    one.legend()
    return figure


def form_labels(stripe_width: int) -> dict[str, str]:
    """Return what figures call dense kernels and pairs of stripes."""
    return dict(dense='dense, K x K', stripe=f'stripes, K x {stripe_width} and {stripe_width} x K')
