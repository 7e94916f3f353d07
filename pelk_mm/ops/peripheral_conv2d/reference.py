"""The definition of right: expand theta, convolve densely. Any device, any floating dtype, fp64 included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..sharing_grid import SharingGrid, expand_kernel, sum_over_cells


def why_not(x: Tensor, grid: SharingGrid) -> str | None:
    """The reference runs wherever PyTorch does."""
    return None


def forward(x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W): zero padding K//2, stride 1, depthwise. Differentiable by autograd."""
    dtype = _compute_dtype(x)
    weight = expand_kernel(theta.to(dtype), grid).unsqueeze(1)
    bias = None if bias is None else bias.to(dtype)
    return F.conv2d(x.to(dtype), weight, bias, padding=grid.kernel_size // 2, groups=x.shape[1]).to(x.dtype)


def theta_grad(x: Tensor, grad_output: Tensor, grid: SharingGrid) -> Tensor:
    """Gradient (C, k', k') of the stored kernel: the dense kernel's gradient, summed over each cell."""
    size, dtype = grid.kernel_size, _compute_dtype(x)
    shape = (x.shape[1], 1, size, size)
    dense = conv2d_weight(x.to(dtype), shape, grad_output.to(dtype), padding=size // 2, groups=x.shape[1])
    return sum_over_cells(dense.squeeze(1), grid).to(x.dtype)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Fp32 for fp16 on the CPU, which rounds once, at the end; else that of ``x``.

    Where the CPU multiplies fp16 (AVX512-FP16), oneDNN in PyTorch 2.11 takes minutes, if it ever ends, to generate code
    for depthwise fp16 kernels of 15 x 15 or more.
    """
    return torch.float32 if x.dtype == torch.float16 and x.device.type == 'cpu' else x.dtype
