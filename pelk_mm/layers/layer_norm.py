"""LayerNorm over the channels of an image."""

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over C of an (N, C, H, W) tensor.

    The result is channels-last in memory, (N, C, H, W) in shape, so the pointwise layers that follow it read
    contiguous channels without a copy.

    Args:
        num_channels (int): C.
        eps (float): Added to the variance. Defaults to 1e-6, ConvNeXt's value.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6, **kwargs) -> None:
        super().__init__(num_channels, eps=eps, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
