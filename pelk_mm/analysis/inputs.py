"""The images that a model takes: their number of channels, the order of these and the values."""

from __future__ import annotations

from typing import Any

import mmcv
import numpy as np
import torch
from torch import Tensor, nn

# Stems that stack the four pixels of every 2 x 2 square before their first convolution.
_STACKING_STEMS = ('Focus', )


def count_channels(model: nn.Module) -> int:
    """Return the number of channels of the images that a model takes.

    It is that of the backbone's first convolution, else of the data preprocessor's mean; 3 if there is neither.
    """
    stacked: set[nn.Module] = set()
    for module in getattr(model, 'backbone', model).modules():
        if type(module).__name__ in _STACKING_STEMS:
            stacked.update(module.modules())
        if isinstance(module, nn.Conv2d):
            return module.in_channels // (4 if module in stacked else 1)
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    return mean.numel() if isinstance(mean, Tensor) and mean.numel() > 1 else 3


def swaps_colours(preprocessor: Any, channels: int) -> bool:
    """Return whether a data preprocessor turns BGR, as pipelines load images, into RGB, which needs three channels."""
    # mmpretrain, then MMEngine, mmseg and mmdet.
    names = ('to_rgb', '_channel_conversion', 'channel_conversion')
    return channels == 3 and any(getattr(preprocessor, name, False) for name in names)


def normalisation(preprocessor: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of a data preprocessor, (C or 1, 1, 1) each; 0 and 1 without.

    Raises:
        ValueError: If they are of another number of channels.
    """
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:
        return torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    if mean.numel() not in (1, channels):
        raise ValueError(f'data_preprocessor.mean must have 1 or {channels} values, as the backbone takes {channels} '
                         f'channels, got {mean.numel()}')
    return mean.detach().clone(), std.detach().clone()


def fit_channels(image: np.ndarray, channels: int, name: Any) -> np.ndarray:
    """Bring an image to the number of channels that a model takes, where colours and grey differ only in form.

    Args:
        image (np.ndarray): (H, W) or (H, W, C), colours in the order BGR.
        channels (int): How many the model takes.
        name (Any): Name of the image in errors, such as its path.

    Returns:
        np.ndarray: (H, W, channels).

    Raises:
        ValueError: If the image has another number of channels, and is not a colour or grey image for a model of the
            other kind.
    """
    image = np.atleast_3d(image)
    count = image.shape[2]
    if count == channels:
        return image
    if (count, channels) == (1, 3):
        return np.repeat(image, 3, 2)
    if (count, channels) == (3, 1):
        return mmcv.bgr2gray(image, keepdim=True)
    raise ValueError(f'{name} has {count} channels, and the model takes {channels}: load it by the first transform of '
                     "the test dataset's pipeline, as in training")


def displayable(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3), uint8, BGR to show, made of one with any number of channels and of any type.

    Args:
        image (np.ndarray): (H, W) or (H, W, C). Of more than three channels the first three are taken.
    """
    image = np.atleast_3d(image)
    image = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, 2)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    image = np.nan_to_num(image.astype(np.float64))
    low, high = min(image.min(), 0), image.max()
    if high <= 255 and low == 0 and high > 1:
        low, high = 0, 255
    return ((image - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
