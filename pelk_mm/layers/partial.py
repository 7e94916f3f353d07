"""The partial split (PeLK, Sec. 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PartialMixer(nn.Module):
    """Apply a token mixer to the first channels and pass the rest through.

    Args:
        mixer (nn.Module): Maps (N, g, H, W) to (N, g, H, W); may take cell sums as second argument.
        mixed_channels (int): g, at most the C of the input.
    """

    def __init__(self, mixer: nn.Module, mixed_channels: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixed_channels = mixed_channels

    def forward(self, x: Tensor, position_cell_sums: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        part = x[:, :self.mixed_channels]
        mixed = self.mixer(part) if position_cell_sums is None else self.mixer(part, position_cell_sums)
        if self.mixed_channels == x.shape[1]:
            return mixed
        return torch.cat((mixed, x[:, self.mixed_channels:]), dim=1)
