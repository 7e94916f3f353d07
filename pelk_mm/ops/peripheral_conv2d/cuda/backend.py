"""The CUDA backend's host side: supported input and launches."""

from __future__ import annotations

import ctypes
from typing import cast

import torch
from torch import Tensor

from ...sharing_grid import SharingGrid
from . import driver
from .plan import DTYPES, Launch, Shape, plan_forward, plan_theta_grad, strided
from .plan import why_not as why_no_kernel


def why_not(x: Tensor, grid: SharingGrid) -> str | None:
    """Return why the kernels cannot run on x (N, C, H, W) with this grid, or None if they can."""
    if x.dtype not in DTYPES:
        return f'{str(x.dtype).removeprefix("torch.")} is not supported: the kernels accumulate in float32'
    reason = driver.why_not(x.device)
    if reason is not None or not x.numel():
        return reason
    if x.shape[0] * x.shape[1] >= 2**31:
        return f'x has {x.shape[0] * x.shape[1]} planes, fewer than {2**31} are supported'
    reason = why_no_kernel(grid, x.shape[2], x.shape[3])
    if reason is not None:
        return reason
    shape = _shape(x)
    if plan_forward(grid, shape) is None or plan_theta_grad(grid, shape) is None:
        return f'needs more than the {shape.shared_limit} bytes of shared memory that a block of this GPU may have'
    return None


def forward(x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W), contiguous, dtype of x. Input without unit stride along W is copied first."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        x, theta = _with_unit_stride(x), theta.contiguous()
        bias = None if bias is None else bias.contiguous()
        launch = cast(Launch, plan_forward(grid, _shape(x)))
        _run(launch, x, strided(x), _pointer(theta), _pointer(bias), strided(out), launch.plan)
    return out


def theta_grad(x: Tensor, grad_output: Tensor, grid: SharingGrid) -> Tensor:
    """Return the gradient (C, k', k') of the stored kernel, the same bits every time: sums have a fixed order."""
    channels, cells = x.shape[1], grid.num_cells
    if x.numel() == 0:
        return x.new_zeros(channels, cells, cells)
    x, grad_output = _with_unit_stride(x), _with_unit_stride(grad_output)
    launch = cast(Launch, plan_theta_grad(grid, _shape(x)))
    across, splits = cast('tuple[int, int]', launch.blocks)
    partial = torch.zeros(splits, channels, cells, cells, dtype=torch.float32, device=x.device)
    _run(launch, x, strided(x), strided(grad_output), _pointer(partial), ctypes.c_int(across // channels), launch.plan)
    return partial.sum(0).to(x.dtype)


def kernels(x: Tensor, grid: SharingGrid) -> dict[str, str]:
    """Name the kernel and its tensor cores' instruction for ``'forward'`` and ``'theta_grad'`` of x, for reports."""
    launches = dict(forward=plan_forward(grid, _shape(x)), theta_grad=plan_theta_grad(grid, _shape(x)))
    return {function: f'{launch.variant.kernel}, {launch.core}' for function, launch in launches.items() if launch}


def _run(launch: Launch, x: Tensor, *arguments) -> None:
    blocks = launch.blocks
    if blocks is None:
        blocks = min(launch.units, driver.resident_blocks(launch, x.device)), 1
    driver.launch(launch, blocks, arguments, x.device)


def _shape(x: Tensor) -> Shape:
    parts = 2 if x.dtype == torch.float32 and not tf32_allowed() else 1
    batch, channels, height, width = x.shape
    return Shape(batch, channels, height, width, x.dtype, parts, driver.shared_limit(x.device),
                 driver.has_wgmma(x.device))


def tf32_allowed() -> bool:
    """Return whether PyTorch lets fp32 convolutions use TF32: one product of 11 bits then replaces three of 22."""
    convolutions = getattr(torch.backends.cudnn, 'conv', None)
    if hasattr(convolutions, 'fp32_precision'):
        return convolutions.fp32_precision == 'tf32'
    return torch.backends.cudnn.allow_tf32


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
