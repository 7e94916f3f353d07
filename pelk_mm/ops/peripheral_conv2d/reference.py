"""The definition of right: expand theta, convolve densely. Any device, any floating dtype, fp64 included."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..sharing_grid import SharingGrid, expand_kernel, sum_over_cells


def why_not(x: Tensor, grid: SharingGrid) -> str | None:
    """The reference runs wherever PyTorch does."""
    return None


def forward(x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W): zero padding K//2, stride 1, depthwise. Differentiable by autograd."""
    weight = expand_kernel(theta, grid).unsqueeze(1)
    return F.conv2d(x, weight, bias, padding=grid.kernel_size // 2, groups=x.shape[1])


def theta_grad(x: Tensor, grad_output: Tensor, grid: SharingGrid) -> Tensor:
    """Gradient (C, k', k') of the stored kernel: the dense kernel's gradient, summed over each cell."""
    size = grid.kernel_size
    dense = conv2d_weight(x, (x.shape[1], 1, size, size), grad_output, padding=size // 2, groups=x.shape[1])
    return sum_over_cells(dense.squeeze(1), grid)
