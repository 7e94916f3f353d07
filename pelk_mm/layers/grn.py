"""Global response normalization (ConvNeXt V2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GRN(nn.Module):
    """Global response normalization of `ConvNeXt V2 <https://arxiv.org/abs/2301.00808>`_, Sec. 3.

    ``y = gamma * (x * n) + beta + x``, n the L2 norm of each channel over the pixels, divided by its mean over the
    channels. It starts as the identity.

    Args:
        num_channels (int): C.
        eps (float): Added to the mean. Defaults to 1e-6.

    Attributes:
        gamma (Tensor): (C,), initially 0.
        beta (Tensor): (C,), initially 0.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        # Of 16 bits the sums would overflow, and eps would be lost.
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=wide)
        return self.gamma * (x * (norm / (norm.mean(-1, keepdim=True) + self.eps)).to(x.dtype)) + self.beta + x

    def extra_repr(self) -> str:
        return f'{len(self.gamma)}, eps={self.eps}'
