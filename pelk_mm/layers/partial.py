"""The partial split (PeLK, Sec. 4.3)."""

import torch
from torch import Tensor, nn


class PartialMixer(nn.Module):
    """Applies a token mixer to the first channels and passes the rest through.

    Args:
        mixer (nn.Module): Maps (N, g, H, W) to (N, g, H, W); further arguments of :meth:`forward` go to it.
        mixed_channels (int): g, at most the C of the input.
    """

    def __init__(self, mixer: nn.Module, mixed_channels: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixed_channels = mixed_channels

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        mixed = self.mixer(x[:, :self.mixed_channels], *args)
        if self.mixed_channels == x.shape[1]:
            return mixed
        return torch.cat((mixed, x[:, self.mixed_channels:]), dim=1)
