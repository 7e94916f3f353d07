"""LayerNorm over the channels of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.concat_layer_norm import concat_layer_norm


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over C of an (N, C, H, W) tensor.

    The result is channels-last in memory, (N, C, H, W) in shape, so the pointwise layers that follow it read
    contiguous channels without a copy.

    Args:
        num_channels (int): C.
        eps (float): Added to the variance. Defaults to 1e-6, ConvNeXt's value.
        elementwise_affine (bool): Whether there are a weight and a bias, (C,) each. Defaults to True.
        bias (bool): Whether there is a bias beside the weight. Defaults to True.
        device (torch.device | str, optional): Device of the parameters.
        dtype (torch.dtype, optional): Of the parameters.
    """

    def __init__(self,
                 num_channels: int,
                 eps: float = 1e-6,
                 elementwise_affine: bool = True,
                 bias: bool = True,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__(num_channels, eps, elementwise_affine, bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), channels-last."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)

    def norm_parts(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, A, H, W) and (N, C - A, H, W) -> (N, C, H, W), channels-last: as :meth:`forward` of both together."""
        return concat_layer_norm(a, b, self.weight, self.bias, self.eps)
