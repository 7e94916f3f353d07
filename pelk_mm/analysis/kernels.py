"""Numbers and figures of sharing grids and of the kernels of a model (PeLK, Fig. 1 and 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor, nn

from pelk_mm.layers import KernelPositionEmbedding, PeripheralConv2d
from pelk_mm.ops import SharingGrid

# Smaller kernels are not drawn.
_LEAST_SIDE = 5


@dataclass(frozen=True)
class KernelLayer:
    """A convolution of a model.

    Attributes:
        name (str): Of the module.
        kernel (np.ndarray): (C, kh, kw), float32, expanded if it is peripheral; C counts channels, of an
            ordinary convolution pairs of them.
        grid (SharingGrid | None): Of a peripheral convolution.
    """

    name: str
    kernel: np.ndarray
    grid: SharingGrid | None


@dataclass(frozen=True)
class StageKernels:
    """The largest convolutions of a stage that have one shape.

    Attributes:
        name (str): Of the stage, such as ``stages.2``: all modules whose names are equal up to their first number.
        layers (tuple[KernelLayer, ...]): The convolutions, in order.
        embedding (np.ndarray | None): (C, K, K), float32, their positional embedding, if they have one.
    """

    name: str
    layers: tuple[KernelLayer, ...]
    embedding: np.ndarray | None

    def magnitude(self) -> np.ndarray:
        """Return the root mean square over channels and layers for each tap, (kh, kw)."""
        return _root_mean_square(np.concatenate([layer.kernel for layer in self.layers]))

    def summary(self) -> dict:
        """Return plain numbers: sizes, parameters, and root mean squares by distance from the kernel's centre."""
        first = self.layers[0]
        channels, height, width = first.kernel.shape
        numbers = dict(
            name=self.name,
            layers=[layer.name for layer in self.layers],
            channels=channels,
            kernel_size=[height, width],
            parameters_per_channel=height * width if first.grid is None else first.grid.num_cells**2,
            half_grid=None if first.grid is None else list(first.grid.half),
            rms_by_distance=_by_distance(self.magnitude()))
        if self.embedding is not None:
            numbers['embedding_rms_by_distance'] = _by_distance(_root_mean_square(self.embedding))
        return numbers


def collect_kernels(model: nn.Module, least_side: int = _LEAST_SIDE) -> list[StageKernels]:
    """Find the large kernels of a model and the positional embeddings beside them, by stage.

    Args:
        model (nn.Module): Any module, in training form or deployed.
        least_side (int): Kernels whose longer side is below this are left out. Defaults to 5.

    Returns:
        list[StageKernels]: In the order of the model. Of one without such depthwise kernels its other large
        convolutions, with a kernel for each pair of an output and an input channel.

    Raises:
        ValueError: If there is no such kernel either.
    """
    layers: dict[str, list[KernelLayer]] = {}
    others: dict[str, list[KernelLayer]] = {}
    embeddings: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        stage = _stage(name)
        if isinstance(module, KernelPositionEmbedding):
            embeddings[stage] = _array(module.weight)
        elif isinstance(module, PeripheralConv2d):
            layers.setdefault(stage, []).append(KernelLayer(name, _array(module.kernel()), module.grid))
        elif isinstance(module, nn.Conv2d):
            is_depthwise = module.groups == module.in_channels > 1
            kernels = KernelLayer(name, _array(module.weight.flatten(0, 1)), None)
            (layers if is_depthwise else others).setdefault(stage, []).append(kernels)
    stages = _largest(layers, embeddings, least_side) or _largest(others, {}, least_side)
    if not stages:
        raise ValueError(f'{type(model).__name__} has no convolution of {least_side} x {least_side} or more')
    return stages


def _largest(layers: Mapping[str, list[KernelLayer]], embeddings: Mapping[str, np.ndarray],
             least_side: int) -> list[StageKernels]:
    stages = []
    for stage, found in layers.items():
        # Not the small branch beside a peripheral convolution, even where it is as large.
        found = [layer for layer in found if layer.grid is not None] or found
        largest = max(max(layer.kernel[0].shape) for layer in found)
        # The two stripes of SLaK differ in shape.
        shapes = dict.fromkeys(layer.kernel[0].shape for layer in found if max(layer.kernel[0].shape) == largest)
        for shape in shapes if largest >= least_side else ():
            same = tuple(layer for layer in found if layer.kernel[0].shape == shape)
            embedding = embeddings.get(stage)
            fits = embedding is not None and embedding.shape == same[0].kernel.shape
            stages.append(StageKernels(stage, same, embedding if fits else None))
    return stages


def draw_kernels(stages: Sequence[StageKernels], channels: int = 3) -> Figure:
    """Draw the kernels of each stage.

    Args:
        stages (Sequence[StageKernels]): The rows, from :func:`collect_kernels`.
        channels (int): How many kernels of single channels to draw, those of the last layer that differ most from
            zero. Defaults to 3.

    Returns:
        Figure: For each stage its sharing grid, the root mean square of all its kernels, some kernels, and, if there
        are any, the positional embedding's root mean square and its first of these channels.
    """
    has_embedding = any(stage.embedding is not None for stage in stages)
    columns = channels + (4 if has_embedding else 2)
    figure = Figure(figsize=(2.1 * columns, 2.6 * len(stages)), layout=ConstrainedLayoutEngine(h_pad=0.12))
    for row, stage in zip(figure.subplots(len(stages), columns, squeeze=False), stages):
        last = stage.layers[-1]
        if last.grid is None:
            row[0].text(0.5, 0.5, 'nothing is shared', ha='center', va='center')
            row[0].set_axis_off()
        else:
            draw_grid(row[0], last.grid)
        height, width = last.kernel.shape[1:]
        row[0].set_title(f'{stage.name}: {height} x {width}', fontsize='small')
        _draw_magnitude(row[1], stage.magnitude(), 'rms of all layers')
        strongest = np.argsort(-np.square(last.kernel).sum((1, 2)))[:channels]
        for axis in row[2:]:
            axis.set_axis_off()
        for axis, channel in zip(row[2:], strongest):
            _draw_signed(axis, last.kernel[channel], f'last layer, kernel {channel}')
        if stage.embedding is not None:
            _draw_magnitude(row[-2], _root_mean_square(stage.embedding), 'embedding, rms')
            _draw_signed(row[-1], stage.embedding[strongest[0]], f'embedding, channel {strongest[0]}')
    return figure


def draw_sharing_grids(grids: Sequence[SharingGrid]) -> Figure:
    """Draw grids side by side, each with the widths of its cells and the stored share (Fig. 1)."""
    figure = Figure(figsize=(4.6 * len(grids), 5.2), layout=ConstrainedLayoutEngine(w_pad=0.1))
    for axis, grid in zip(figure.subplots(1, len(grids), squeeze=False)[0], grids):
        draw_grid(axis, grid)
        size, cells = grid.kernel_size, grid.num_cells
        axis.set_title(f'{size} x {size} taps share {cells} x {cells} parameters ({100 * grid.stored_ratio:.1f} %)')
        for start, width in zip(grid.starts, grid.widths):
            # Numbers of unit cells would run into each other.
            if width > max(1, size // 40):
                place = (start + size // 2 + (width - 1) / 2, -0.01)
                axis.text(*place, width, ha='center', va='top', fontsize='small', transform=axis.get_xaxis_transform())
        axis.set_xlabel(f'half grid {", ".join(map(str, grid.half))}', labelpad=18)
    return figure


def draw_grid(axis: Axes, grid: SharingGrid) -> None:
    """Draw the cells of one grid, coloured by the larger of their two distances from the centre, in cells."""
    half = len(grid.half) - 1
    distances = np.abs(np.array(grid.cells) - half)
    rings = np.maximum(distances[:, None], distances[None, :])
    # Rings alternate, so that neighbours among many can be distinguished; the unshared centre stands out.
    unshared = grid.center // 2
    shades = np.where(rings <= unshared, 2, rings % 2) if unshared else rings % 2
    axis.imshow(shades, cmap=ListedColormap(['#b8d4ea', '#dbe9f4', '#f4b183']), vmin=0, vmax=2)
    edges = [start + grid.kernel_size // 2 - 0.5 for start in grid.starts] + [grid.kernel_size - 0.5]
    axis.vlines(edges, -0.5, grid.kernel_size - 0.5, color='black', linewidth=0.5)
    axis.hlines(edges, -0.5, grid.kernel_size - 0.5, color='black', linewidth=0.5)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _draw_magnitude(axis: Axes, values: np.ndarray, title: str) -> None:
    _draw(axis, values, title, cmap='viridis', vmin=0)


def _draw_signed(axis: Axes, values: np.ndarray, title: str) -> None:
    limit = float(np.abs(values).max()) or 1.0
    _draw(axis, values, title, cmap='RdBu_r', vmin=-limit, vmax=limit)


def _draw(axis: Axes, values: np.ndarray, title: str, **options) -> None:
    axis.set_axis_on()
    axis.imshow(values, interpolation='nearest', **options)
    axis.set_title(title, fontsize='small')
    axis.set_xlabel(f'largest {np.abs(values).max():.2g}', fontsize='small')
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _stage(name: str) -> str:
    """Return ``stages.2`` for ``backbone.stages.2.blocks.0.conv``, ``layer1`` for ``backbone.layer1.0.conv2``."""
    name = name.removeprefix('backbone.')
    match = re.match(r'(?:.*?\d+)(?=\.|$)', name)
    return match.group() if match else name.partition('.')[0]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _root_mean_square(kernels: np.ndarray) -> np.ndarray:
    """Return the root mean square over the first axis."""
    return np.sqrt(np.mean(kernels.astype(np.float64)**2, axis=0))


def _by_distance(magnitude: np.ndarray) -> list[float]:
    """Return the root mean square of the taps at each distance from the centre, the larger of those along the axes."""
    rows, cols = (np.abs(np.arange(size) - size // 2) for size in magnitude.shape)
    rings = np.maximum(rows[:, None], cols[None, :]).ravel()
    squares = np.bincount(rings, weights=magnitude.ravel()**2) / np.bincount(rings)
    return [float(value) for value in np.sqrt(squares)]
