"""Convolutions whose gradients DDP uses without a copy."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` whose weight and its gradient have the same strides, see :func:`with_strides_of_gradient`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return self._conv_forward(x, with_strides_of_gradient(self.weight), self.bias)


def with_strides_of_gradient(weight: Tensor) -> Tensor:
    """Return a view of a weight that gives its gradient the weight's strides, also in dimensions of size 1.

    With channels-last input PyTorch makes the gradient of a contiguous depthwise weight, (C, 1, h, w), channels-last.
    The strides differ only in the dimension of size 1, so autograd keeps them. But DDP compares all strides with those
    of its buckets and warns "Grad strides do not match bucket view strides".

    Args:
        weight (Tensor): (C_out, C_in, h, w), contiguous or channels-last.
    """
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return weight
    channels, height, width = weight.shape[1:]
    # The backward pass of the view gives dimensions of size 1 their usual strides.
    if weight.stride() == (channels * height * width, 1, channels * width, channels):
        rows = weight.permute(0, 2, 3, 1)
        return rows.flatten(1).view(rows.shape).permute(0, 3, 1, 2)
    return weight.flatten(1).view(weight.shape)
