"""The partial split (PeLK, Sec. 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.concat_layer_norm import concat_channels


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
        return concat_channels(*self.mix_parts(x, position_cell_sums))

    def mix_parts(self, x: Tensor, position_cell_sums: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mixed channels (N, g, H, W) and the others (N, C - g, H, W), of which there may be 0."""
        if self.mixed_channels == x.shape[1]:
            part, rest = x, x[:, self.mixed_channels:]
        else:
            # Not two slices: the gradient of each would be a tensor of its own, with zeros for the other channels.
            part, rest = x.split((self.mixed_channels, x.shape[1] - self.mixed_channels), dim=1)
        if _reads_planes(x):
            part = part.contiguous()
        elif rest.shape[1] and torch.is_grad_enabled() and x.requires_grad:
            # PyTorch's convolutions would copy what has gaps, forward and backward, and keep all of x.
            part = part.clone()
        return self.mixer(part) if position_cell_sums is None else self.mixer(part, position_cell_sums), rest


def _reads_planes(x: Tensor) -> bool:
    """Return whether a mixer is faster on planes: GPUs' kernels for depthwise convolutions read no other format."""
    return x.is_cuda
