"""Exported files against the model they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch

from .exporting import ImageModel
from .onnx_model import OnnxModel


@dataclass
class Agreement:
    """One output of an exported file at one size.

    Attributes:
        shape (tuple[int, ...]): Shape of the input, (N, 3, H, W).
        output (str): Name of the output.
        maximum (float): Largest absolute difference from PyTorch.
        relative (float): The same as a share of the largest absolute value.
    """

    shape: tuple[int, ...]
    output: str
    maximum: float
    relative: float


def stack_images(images: Iterable[np.ndarray], size: Sequence[int]) -> np.ndarray:
    """Pictures (H, W, 3), uint8, BGR as one input ``(N, 3, *size)``, float32, RGB of exported models."""
    resized = [mmcv.imresize(image, (size[1], size[0]))[..., ::-1].transpose(2, 0, 1) for image in images]
    return np.stack(resized).astype(np.float32)


@torch.no_grad()
def verify_onnx(model: ImageModel, path: str | Path, inputs: Iterable[np.ndarray]) -> list[Agreement]:
    """Compare a file in onnxruntime with the model in PyTorch.

    Args:
        model (ImageModel): The model with its own operations, ``form=None``.
        path (str | Path): The ONNX file.
        inputs (Iterable[np.ndarray]): (N, 3, H, W), float32, RGB, each of its own shape.
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


def _agreement(shape: tuple[int, ...], name: str, expected: np.ndarray, got: np.ndarray) -> Agreement:
    if expected.shape != got.shape or not np.isfinite(got).all():
        return Agreement(shape, name, float('inf'), float('inf'))
    maximum = float(np.abs(expected - got).max())
    return Agreement(shape, name, maximum, maximum / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny))
