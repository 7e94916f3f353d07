"""The definition of the correct result: expand theta, convolve densely, on any device and in any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..sharing_grid import SharingGrid, expand_kernel, sum_over_cells


def why_not(x: Tensor, grid: SharingGrid) -> str | None:
    """Return None: the reference runs wherever PyTorch does."""
    return None


def forward(x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W): zero padding K//2, stride 1, depthwise. Differentiable by autograd."""
    dtype = _compute_dtype(x)
    weight = expand_kernel(theta.to(dtype), grid).unsqueeze(1)
    bias = None if bias is None else bias.to(dtype)
    return F.conv2d(x.to(dtype), weight, bias, padding=grid.kernel_size // 2, groups=x.shape[1]).to(x.dtype)


def theta_grad(x: Tensor, grad_output: Tensor, grid: SharingGrid) -> Tensor:
    """Return the gradient (C, k', k') of the stored kernel: the dense kernel's, summed over each cell."""
    size, dtype = grid.kernel_size, _compute_dtype(x)
    shape = (x.shape[1], 1, size, size)
    dense = conv2d_weight(x.to(dtype), shape, grad_output.to(dtype), padding=size // 2, groups=x.shape[1])
    return sum_over_cells(dense.squeeze(1), grid).to(x.dtype)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return fp32 for fp16 on the CPU, so that only the end rounds; else the dtype of ``x``.

    On CPUs that multiply fp16 (AVX512-FP16), oneDNN in PyTorch 2.11 needs minutes or hangs when it generates code for
    depthwise fp16 kernels of 15 x 15 or more.
    """
    return torch.float32 if x.dtype == torch.float16 and x.device.type == 'cpu' else x.dtype
