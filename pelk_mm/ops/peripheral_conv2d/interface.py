"""``peripheral_conv2d``: validate, choose a backend, call it; autograd, autocast and ``torch.compile`` support."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid, check_theta
from . import reference
from .backends import BACKENDS, select_backend

BACKEND_VARIABLE = 'PELK_MM_BACKEND'


def peripheral_conv2d(x: Tensor,
                      theta: Tensor,
                      grid: SharingGrid,
                      bias: Tensor | None = None,
                      *,
                      backend: str | None = None) -> Tensor:
    """Depthwise convolution with the K x K kernel that ``theta`` stands for (PeLK, Eq. 1), stride 1, padding K//2.

    As ``torch.nn.functional.conv2d`` this is a cross-correlation. It is differentiable, twice too, with respect to
    ``x``, ``theta`` and ``bias``, follows autocast as ``conv2d`` does, and is one node to ``torch.compile``.

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
        TypeError: If ``grid`` is no SharingGrid or the dtypes differ or are not floating point.
        ValueError: If shapes or devices do not fit, or the backend is unknown.
        RuntimeError: If a backend asked for by name cannot run; the message says why. In ``torch.onnx.export`` with
            ``dynamo=False``.
    """
    _refuse_torchscript_export()
    x, theta, bias = _autocast(x, theta, bias)
    _check(x, theta, grid, bias)
    backend = backend or os.environ.get(BACKEND_VARIABLE) or 'auto'
    if backend != 'auto' and backend not in BACKENDS:
        raise ValueError(f'backend must be "auto" or one of {sorted(BACKENDS)}, got {backend!r}')
    if backend == 'reference':
        with _own_precision(x):
            return reference.forward(x, theta, bias, grid)
    return _forward(x, theta, bias, list(grid.half), backend)


def available_backends(x: Tensor, theta: Tensor, grid: SharingGrid) -> dict[str, str | None]:
    """For each backend, in the order of preference, None if it can run on these tensors, else the reason why not.

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
    if not _in_autocast(x):
        return x, theta, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    # As for F.conv2d: fp64 is left alone.
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
    """Name the ways that work, before the old exporter fails with a graph of the model for a message."""
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            'torch.onnx.export(..., dynamo=False) cannot export peripheral_conv2d. Call '
            'tools/model_converters/export.py with the config and the checkpoint, or torch.onnx.export(model, ..., '
            'dynamo=True, custom_translation_table=pelk_mm.deploy.onnx_ops.translations()). Where only the old '
            'exporter will do, call it on '
            "pelk_mm.deploy.prepare_for_export(model, 'dense') after model.backbone.switch_to_deploy()")


def _own_precision(x: Tensor) -> AbstractContextManager:
    """Inside a backend, autocast would turn the fp32 sums of 16-bit input into 16-bit ones."""
    return torch.autocast(x.device.type, enabled=False) if _in_autocast(x) else nullcontext()


def _in_autocast(x: Tensor) -> bool:
    return x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type)


@lru_cache(maxsize=1024)
def _grid(half: tuple[int, ...]) -> SharingGrid:
    return SharingGrid(half)


def _like(out: Tensor, x: Tensor) -> Tensor:
    """``out`` with the strides that the fake implementations promise."""
    promised = torch.empty_like(x)
    return out if out.stride() == promised.stride() else promised.copy_(out)


@torch.library.custom_op('pelk_mm::peripheral_conv2d', mutates_args=())
def _forward(x: Tensor, theta: Tensor, bias: Tensor | None, half: list[int], backend: str) -> Tensor:
    grid = _grid(tuple(half))
    with _own_precision(x):
        return _like(select_backend(backend, 'forward', x, grid).forward(x, theta, bias, grid), x)


@torch.library.custom_op('pelk_mm::peripheral_conv2d_theta_grad', mutates_args=())
def _theta_grad(x: Tensor, grad_output: Tensor, half: list[int], backend: str) -> Tensor:
    grid = _grid(tuple(half))
    with _own_precision(x):
        return select_backend(backend, 'theta_grad', x, grid).theta_grad(x, grad_output, grid).contiguous()


@_forward.register_fake
def _(x, theta, bias, half, backend):
    return torch.empty_like(x)


@_theta_grad.register_fake
def _(x, grad_output, half, backend):
    cells = 2 * len(half) - 1
    return x.new_empty(x.shape[1], cells, cells)


def _forward_setup(ctx, inputs, output):
    x, theta, bias, ctx.half, ctx.backend = inputs
    ctx.save_for_backward(x, theta)
    ctx.has_bias = bias is not None


def _forward_backward(ctx, grad):
    x, theta = ctx.saved_tensors
    grad_x = grad_theta = grad_bias = None
    if ctx.needs_input_grad[0]:
        # The grid is symmetric, so the adjoint is the same operator with theta flipped in both axes.
        grad_x = _forward(grad, theta.flip(-2, -1), None, ctx.half, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_theta = _theta_grad(x, grad, ctx.half, ctx.backend)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_theta, grad_bias, None, None


def _theta_grad_setup(ctx, inputs, output):
    x, grad_output, ctx.half, ctx.backend = inputs
    ctx.save_for_backward(x, grad_output)


def _theta_grad_backward(ctx, grad):
    # <grad, theta_grad(x, dy)> = <dy, conv(x, grad)>: bilinear, so both gradients are convolutions with ``grad``.
    x, grad_output = ctx.saved_tensors
    grad_x = grad_dy = None
    if ctx.needs_input_grad[0]:
        grad_x = _forward(grad_output, grad.flip(-2, -1), None, ctx.half, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_dy = _forward(x, grad, None, ctx.half, ctx.backend)
    return grad_x, grad_dy, None, None


_forward.register_autograd(_forward_backward, setup_context=_forward_setup)
_theta_grad.register_autograd(_theta_grad_backward, setup_context=_theta_grad_setup)
