"""Convolutions whose gradients distributed training takes without a copy."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` whose weight gets a gradient of the weight's own strides, see :func:`with_strides_of_gradient`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return self._conv_forward(x, with_strides_of_gradient(self.weight), self.bias)


def with_strides_of_gradient(weight: Tensor) -> Tensor:
    """Return a view of a weight, through which it gets a gradient of its own strides, in dimensions of size 1 too.

    With channels-last input PyTorch makes the gradient of a contiguous depthwise weight, (C, 1, h, w), channels-last.
    The strides differ in the dimension of size 1 only, so autograd keeps them, but DDP compares all of them with its
    buckets', and warns that "Grad strides do not match bucket view strides".

    Args:
        weight (Tensor): (C_out, C_in, h, w), contiguous or channels-last.
    """
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return weight
    channels, height, width = weight.shape[1:]
    # Gradients of views are viewed back, and that gives dimensions of size 1 their usual strides.
    if weight.stride() == (channels * height * width, 1, channels * width, channels):
        rows = weight.permute(0, 2, 3, 1)
        return rows.flatten(1).view(rows.shape).permute(0, 3, 1, 2)
    return weight.flatten(1).view(weight.shape)
