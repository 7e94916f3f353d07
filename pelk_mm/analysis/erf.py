"""Effective receptive fields, measured and drawn by RepLKNet's method (arXiv 2203.06717; PeLK, Fig. 4)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmcv.cnn import is_norm
from rich.progress import track
from torch import Tensor, nn

from pelk_mm.engine.image_files import read_image
from pelk_mm.image_names import IMAGE_SUFFIXES, list_image_files

from .inputs import count_channels, fit_channels, normalisation, swaps_colours

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)

# How far below its maximum the figure of a field reaches.
_DECADES = 6


@dataclass(frozen=True)
class Region:
    """The smallest centred square that holds a share of all contributions.

    Attributes:
        threshold (float): t, the share.
        side (int): Side of the square in pixels, odd.
        ratio (float): r, its area over that of the input. What reaches beyond the input does not count.
    """

    threshold: float
    side: int
    ratio: float


@dataclass(frozen=True)
class ReceptiveField:
    """The effective receptive field of the centre of a model's last feature map.

    Attributes:
        contributions (np.ndarray): (H, W), float64: for each pixel of the input the positive parts of the gradients,
            summed over colours, the mean over images.
        feature_shape (tuple[int, int, int]): C, H and W of the feature map.
    """

    contributions: np.ndarray
    feature_shape: tuple[int, int, int]

    @property
    def scores(self) -> np.ndarray:
        """log10(1 + contributions) over its maximum, from which RepLKNet's area ratios are taken."""
        scores = np.log10(1 + self.contributions)
        return scores / scores.max()

    def regions(self, thresholds: Sequence[float] = THRESHOLDS) -> list[Region]:
        """Return the high-contribution areas of the scores, as published."""
        return high_contribution_regions(self.scores, thresholds)

    def linear_regions(self, thresholds: Sequence[float] = THRESHOLDS) -> list[Region]:
        """Return the same of the contributions themselves, which do not depend on the scale of the features."""
        return high_contribution_regions(self.contributions, thresholds)


def high_contribution_regions(scores: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> list[Region]:
    """Find the smallest square around pixel (H // 2, W // 2) that holds each share of the sum.

    Args:
        scores (np.ndarray): (H, W), not negative.
        thresholds (Sequence[float]): Shares, each in (0, 1].

    Raises:
        ValueError: If a threshold is out of range, or the sum is not positive.
    """
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise ValueError(f'thresholds must be in (0, 1], got {threshold}')
    height, width = scores.shape
    rows, cols = (np.abs(np.arange(size) - size // 2) for size in (height, width))
    rings = np.maximum(rows[:, None], cols[None, :])
    held = np.cumsum(np.bincount(rings.ravel(), weights=scores.ravel()))
    if not held[-1] > 0:
        raise ValueError('scores must have a positive sum')
    # Rounding must not push a share that is met exactly to the next square.
    radii = np.searchsorted(held, np.asarray(thresholds) * held[-1] * (1 - 1e-9))
    return [
        Region(threshold, 2 * int(radius) + 1,
               float((rows <= radius).sum() * (cols <= radius).sum()) / (height * width))
        for threshold, radius in zip(thresholds, radii)
    ]


def measure_receptive_field(model: nn.Module,
                            images: Iterable[Tensor],
                            description: str = 'ERF',
                            num_images: int | None = None,
                            before_norm: bool = False) -> ReceptiveField:
    """Measure which pixels the centre of the last feature map depends on.

    For each image the gradient of the sum over channels of the map's positive values at its centre is taken with
    respect to the image; its positive parts are averaged over images.

    Args:
        model (nn.Module): A classifier, segmentor or detector, of which the backbone is measured, or any module that
            maps (1, C, H, W) to a (1, D, h, w) map or a sequence of such, of which the last counts. It is put into
            eval mode, its parameters no longer require gradients, and backbones of mmpretrain or ours that pool or
            return tokens are set to return maps.
        images (Iterable[Tensor]): Normalised images of one size, (1, C, H, W) each, on the model's device.
        description (str): Title of the progress bar.
        num_images (int, optional): How many images there are, for the progress bar, if ``images`` has no length.
        before_norm (bool): Leave out a norm that the backbone ends with, as RepLKNet's authors do. Defaults to False.

    Raises:
        ValueError: If the module returns no feature map, there are no images, or no pixel contributes.
    """
    backbone = getattr(model, 'backbone', model)
    if hasattr(backbone, 'gap_before_final_norm'):
        backbone.gap_before_final_norm = False
    if hasattr(backbone, 'out_type'):
        backbone.out_type = 'featmap'
    # Not chained: not every backbone of the toolboxes returns itself.
    backbone.eval()
    backbone.requires_grad_(False)
    total, count = None, 0
    with ExitStack() as stack:
        for image in track(images, description=description, total=num_images):
            if before_norm and count == 0 and (norm := _final_norm(backbone, image)) is not None:
                stack.enter_context(norm.register_forward_hook(lambda module, args, output: args[0]))
            image = image.detach().requires_grad_()
            features = backbone(image)
            while isinstance(features, (tuple, list)):
                features = features[-1]
            if not isinstance(features, Tensor) or features.ndim != 4:
                shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                raise ValueError(f'{type(backbone).__name__} must return a feature map (1, C, h, w) last, got {shape}')
            height, width = features.shape[2:]
            center = features[:, :, height // 2, width // 2].relu().sum()
            gradient, = torch.autograd.grad(center, image)
            contributions = gradient.relu().sum((0, 1)).double().cpu().numpy()
            total = contributions if total is None else total + contributions
            count += 1
    if total is None:
        raise ValueError('images must hold at least one image, got none')
    if not np.isfinite(total).all():
        raise ValueError(f'the gradients of {type(backbone).__name__} are not finite')
    if not total.any():
        raise ValueError('no pixel contributes: features at the centre are negative or do not depend on the images')
    return ReceptiveField(total / count, tuple(features.shape[1:]))


def find_images(folder: Path, count: int, first: bool = False) -> list[Path]:
    """Find the images of a folder and its subfolders, evenly spaced over all in the order of their names.

    Args:
        folder (Path): Searched for files that are named like images.
        count (int): How many to take at most.
        first (bool): Take the first ones instead, as RepLKNet's authors do: of ImageNet's validation set in folders of
            classes, 50 images of one class. Defaults to False.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f'the number of images must be positive, got {count}')
    if not folder.is_dir():
        raise FileNotFoundError(f'there is no folder {folder}')
    files = list_image_files(folder, subfolders=True)
    if not files:
        raise FileNotFoundError(f'no image in {folder} or below it: expected files with {", ".join(IMAGE_SUFFIXES)}')
    count = min(count, len(files))
    return files[:count] if first else [files[index * len(files) // count] for index in range(count)]


def load_images(paths: Sequence[Path],
                shape: tuple[int, int],
                model: nn.Module,
                load: Callable[[Path], np.ndarray] | None = None) -> Iterable[Tensor]:
    """Read images, resize them and normalise them as the model's data preprocessor does.

    Args:
        paths (Sequence[Path]): Files.
        shape (tuple[int, int]): Height and width to resize to, bicubically, in any proportions.
        model (nn.Module): A model of MMEngine's kind with ``data_preprocessor``.
        load (Callable, optional): Loads an image (H, W, C) or (H, W), as the model's pipeline does; by default as (H,
            W, 3), uint8. If the model takes other channels, grey and colours become each other, and of other numbers
            the image's channels are repeated in turn until there are enough.

    Yields:
        Tensor: (1, C, H, W), float32, on the model's device.
    """
    preprocessor, channels = model.data_preprocessor, count_channels(model)
    device = next(model.parameters()).device
    mean, std = (value.to(device) for value in normalisation(preprocessor, channels))
    for path in paths:
        loaded = read_image(str(path)) if load is None else load(path)
        if channels > 3:
            loaded = np.atleast_3d(loaded)[..., np.arange(channels) % np.atleast_3d(loaded).shape[2]]
        else:
            loaded = fit_channels(loaded, channels, path)
        image = mmcv.imresize(loaded, shape[::-1], interpolation='bicubic').reshape(*shape, channels)
        tensor = torch.from_numpy(image).to(device).permute(2, 0, 1).float()
        if swaps_colours(preprocessor, channels):
            tensor = tensor.flip(0)
        yield ((tensor - mean) / std)[None]


def draw_receptive_fields(fields: Sequence[Sequence[ReceptiveField]], names: Sequence[str]) -> Figure:
    """Draw fields side by side.

    Args:
        fields (Sequence[Sequence[ReceptiveField]]): For each size of the input, a row, the field of every model.
        names (Sequence[str]): Of the models, the columns.

    Returns:
        Figure: Contributions in decades below each field's maximum, the high-contribution areas as squares.
    """
    figure = Figure(figsize=(3.4 * len(names) + 1, 3.8 * len(fields) + 0.3), layout='constrained')
    axes = figure.subplots(len(fields), len(names), squeeze=False)
    for row, fields_of_size in zip(axes, fields):
        for axis, field, name in zip(row, fields_of_size, names):
            height, width = field.contributions.shape
            axis.set_title(textwrap.fill(f'{name}, {height} x {width}', 36), fontsize='medium')
            view = _draw_field(axis, field)
    figure.colorbar(view, ax=axes, shrink=0.7, label='log10 of the contribution over its maximum')
    return figure


def _draw_field(axis: Axes, field: ReceptiveField):
    contributions = field.contributions / field.contributions.max()
    decades = np.log10(np.maximum(contributions, 10.0**-_DECADES))
    view = axis.imshow(decades, cmap='magma', vmin=-_DECADES, vmax=0)
    height, width = contributions.shape
    regions = field.regions()
    for region in regions:
        corner = (width // 2 - region.side / 2, height // 2 - region.side / 2)
        axis.add_patch(Rectangle(corner, region.side, region.side, fill=False, edgecolor='white', linewidth=0.8))
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    shares = '   '.join(f'{100 * region.threshold:g} %: {100 * region.ratio:.3g}' for region in regions)
    axis.set_xlabel(f'area ratio r in % at t =\n{shares}', fontsize='small')
    return view


def _final_norm(backbone: nn.Module, image: Tensor) -> nn.Module | None:
    """Return the norm that a backbone ends with, None if it ends otherwise."""
    called: list[nn.Module] = []
    with ExitStack() as hooks, torch.no_grad():
        for module in backbone.modules():
            if not any(module.children()):
                hooks.enter_context(module.register_forward_hook(lambda leaf, *_: called.append(leaf)))
        backbone(image)
    return called[-1] if called and is_norm(called[-1]) else None
