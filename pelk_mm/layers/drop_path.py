"""Stochastic depth."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch for some samples of a batch, and scale it for the others to keep the mean.

    It draws the same random numbers as ``DropPath`` of timm and mmcv.

    Args:
        drop_prob (float): Probability of dropping the branch of a sample, in [0, 1).
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, ...)."""
        if not self.training or self.drop_prob == 0:
            return x
        keep_prob = 1 - self.drop_prob
        noise = torch.rand((x.shape[0], *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
        return x.div(keep_prob) * (keep_prob + noise).floor()

    def extra_repr(self) -> str:
        return f'{self.drop_prob:.3g}'
