"""``peripheral_conv2d``: follow autocast, validate, choose a backend, call the operator."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid, check_theta
from . import operators, reference
from .backends import BACKENDS, resolve_name

BACKEND_VARIABLE = 'PELK_MM_BACKEND'


def peripheral_conv2d(x: Tensor,
                      theta: Tensor,
                      grid: SharingGrid,
                      bias: Tensor | None = None,
                      *,
                      backend: str | None = None) -> Tensor:
    """Convolve depthwise with the K x K kernel that ``theta`` stands for (PeLK, Eq. 1), stride 1, padding K//2.

    As ``torch.nn.functional.conv2d`` this is a cross-correlation. It is differentiable with respect to ``x``, ``theta``
    and ``bias`` any number of times, in reverse and in forward mode, and inside the transforms of ``torch.func``. It
    follows autocast as ``conv2d`` does, and ``torch.compile`` sees one node.

    Args:
        x (Tensor): (N, C, H, W), any strides; float64, float32, bfloat16 or float16.
        theta (Tensor): (C, k', k'), the stored kernel, dtype and device of ``x``.
        grid (SharingGrid): The cells that theta is shared over.
        bias (Tensor, optional): (C,), dtype and device of ``x``.
        backend (str, optional): A name of :func:`available_backends`, or ``'auto'``. By default the environment
            variable ``PELK_MM_BACKEND`` if it is set, else ``'auto'``: the fastest that can run.

    Returns:
        Tensor: (N, C, H, W), dtype of ``x`` (under autocast the autocast dtype), memory format of ``x``.

    Raises:
        TypeError: If ``grid`` is not a SharingGrid, or the dtypes differ or are not floating point.
        ValueError: If shapes or devices do not fit, or the backend is unknown.
        RuntimeError: If a backend chosen by name cannot run; the message says why. Also in ``torch.onnx.export`` with
            ``dynamo=False``.
    """
    _refuse_torchscript_export()
    x, theta, bias = _autocast(x, theta, bias)
    _check(x, theta, grid, bias)
    backend = resolve_name(backend or os.environ.get(BACKEND_VARIABLE) or 'auto')
    if backend == 'reference':
        with operators.own_precision(x):
            return reference.forward(x, theta, bias, grid)
    return operators.conv(x, theta, bias, list(grid.half), backend)


def available_backends(x: Tensor, theta: Tensor, grid: SharingGrid) -> dict[str, str | None]:
    """Return for each backend, in order of preference, None if it can run on these tensors, else why it cannot.

    Args:
        x (Tensor): (N, C, H, W).
        theta (Tensor): (C, k', k').
        grid (SharingGrid): The cells.

    Raises:
        TypeError, ValueError: As :func:`peripheral_conv2d`.
    """
    _check(x, theta, grid, None)
    return {name: backend.why_not(x, grid) for name, backend in BACKENDS.items()}


def _autocast(x: Tensor, theta: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if not operators.in_autocast(x):
        return x, theta, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    # As for F.conv2d: fp64 stays.
    castable = (torch.float32, torch.float16, torch.bfloat16)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.dtype in castable else tensor

    return cast(x), cast(theta), None if bias is None else cast(bias)


def _check(x: Tensor, theta: Tensor, grid: SharingGrid, bias: Tensor | None) -> None:
    if not isinstance(grid, SharingGrid):
        raise TypeError(f'grid must be a SharingGrid, got {type(grid).__name__}')
    if x.ndim != 4:
        raise ValueError(f'x must have shape (N, C, H, W), got {tuple(x.shape)}')
    check_theta(theta, grid)
    channels = x.shape[1]
    if theta.shape[0] != channels:
        raise ValueError(f'theta must have the {channels} channels of x, got {theta.shape[0]}')
    if bias is not None and bias.shape != (channels, ):
        raise ValueError(f'bias must have shape ({channels},), got {tuple(bias.shape)}')
    if x.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f'x must be float64, float32, bfloat16 or float16, got {x.dtype}')
    for name, tensor in (('theta', theta), ('bias', bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f'{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}')
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f'{name} must be on the device of x, {x.device}, got {tensor.device}')


def _refuse_torchscript_export() -> None:
    """Name the ways that work, before the old exporter fails with the graph of the model as its message."""
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            'torch.onnx.export(..., dynamo=False) cannot export peripheral_conv2d. Call '
            'tools/model_converters/export.py with the config and the checkpoint, or torch.onnx.export(model, ..., '
            'dynamo=True, custom_translation_table=pelk_mm.deploy.onnx_ops.translations()). Where only the old '
            'exporter will do, call it on '
            "pelk_mm.deploy.prepare_for_export(model, 'dense') after model.backbone.switch_to_deploy()")
