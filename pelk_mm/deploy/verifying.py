"""Exported files against the model they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from torch import nn

from ..analysis.inputs import count_channels, fit_channels
from .exporting import ImageModel
from .onnx_model import OnnxModel
from .predicting import exported_network, predict
from .predictions import Predictions


@dataclass
class Agreement:
    """One output of an exported file at one size.

    Attributes:
        shape (tuple[int, ...]): Shape of the input, (N, C, H, W).
        output (str): Name of the output.
        maximum (float): Largest absolute difference from PyTorch.
        relative (float): The same as a share of the largest absolute value.
    """

    shape: tuple[int, ...]
    output: str
    maximum: float
    relative: float


def stack_images(images: Iterable[np.ndarray], size: Sequence[int], channels: int = 3) -> np.ndarray:
    """Stack images (H, W, C), three channels as BGR, to one input of exported models.

    Args:
        images (Iterable[np.ndarray]): As pipelines load them.
        size (Sequence[int]): Height and width to resize them to.
        channels (int): How many the model takes.

    Returns:
        np.ndarray: (N, channels, H, W), float32, three channels as RGB.

    Raises:
        ValueError: If an image does not have these channels.
    """
    resized = []
    for image in images:
        fitting = mmcv.imresize(fit_channels(image, channels, 'image'), (size[1], size[0])).reshape(*size, channels)
        resized.append((fitting[..., ::-1] if channels == 3 else fitting).transpose(2, 0, 1))
    return np.stack(resized).astype(np.float32)


@torch.no_grad()
def verify_onnx(model: ImageModel, path: str | Path, inputs: Iterable[np.ndarray]) -> list[Agreement]:
    """Compare a file in onnxruntime with the model in PyTorch.

    Args:
        model (ImageModel): The model with its own operations, ``form=None``.
        path (str | Path): The ONNX file.
        inputs (Iterable[np.ndarray]): (N, C, H, W), float32, each of its own shape.
    """
    exported = OnnxModel(path)
    found = []
    for images in inputs:
        for name, expected, got in zip(model.output_names(), model(torch.from_numpy(images)), exported.run(images)):
            found.append(_agreement(images.shape, name, expected.numpy(), got))
    return found


@torch.no_grad()
def verify_package(model: ImageModel, path: str | Path, inputs: Iterable[np.ndarray]) -> list[Agreement]:
    """Compare a package of ``torch.export`` with the model; arguments as in :func:`verify_onnx`."""
    exported = torch.export.load(str(path)).module()
    found = []
    for images in inputs:
        tensor = torch.from_numpy(images)
        for name, expected, got in zip(model.output_names(), model(tensor), exported(tensor)):
            found.append(_agreement(images.shape, name, expected.numpy(), got.numpy()))
    return found


def verify_predictions(model: nn.Module, task: str, path: str | Path, batches: Iterable[dict]) -> Predictions:
    """Compare final predictions with an exported file to those of the model in testing, by the same head.

    Of a classifier or segmentor in an ONNX file these are :class:`OnnxModel`'s; otherwise ``model`` predicts with the
    file's outputs in place of its own network's.

    Args:
        model (nn.Module): The model that was exported, with its weights, on the CPU.
        task (str): Its task.
        path (str | Path): The ONNX file, or the package, ``.pt2``.
        batches (Iterable[dict]): Images as the test pipeline gives them, collated.
    """
    found = Predictions()
    run: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    if Path(path).suffix == '.onnx':
        onnx = OnnxModel(path)
        run = onnx.run_tensors
    else:
        onnx = None
        run = torch.export.load(str(path)).module()
    for batch in batches:
        expected = predict(model, batch)
        if onnx is not None and task != 'detection':
            got = onnx.predict_batch(batch)
        else:
            with exported_network(model, task, run, count_channels(model)):
                got = predict(model, batch)
        for before, after in zip(expected, got):
            found.add(before, after)
    return found


def _agreement(shape: tuple[int, ...], name: str, expected: np.ndarray, got: np.ndarray) -> Agreement:
    if expected.shape != got.shape or not np.isfinite(got).all():
        return Agreement(shape, name, float('inf'), float('inf'))
    maximum = float(np.abs(expected - got).max())
    return Agreement(shape, name, maximum, maximum / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny))
