"""The kernel-wise positional embedding (PeLK, Sec. 4.2, Eq. 3)."""

import torch
from torch import Tensor, nn

from ..ops import SharingGrid, sum_over_cells


class KernelPositionEmbedding(nn.Module):
    """One value per channel and position of the expanded kernel, shared by all blocks of a stage.

    Eq. 3 adds ``sum_ij w(i, j) h(i, j)`` to the output of the convolution. That sum depends on neither pixel nor
    image: it is one number per channel. As w is constant over each cell, it equals ``sum_ab theta(a, b) H(a, b)``
    with H the sums of h over the cells, which is what :meth:`forward` returns, once for all blocks of the stage.

    Args:
        channels (int): Number of convolved channels, C_conv.
        grid (SharingGrid): The grid of the stage's kernels.
        std (float): Standard deviation of the truncated normal initialisation. Defaults to 0.02.

    Attributes:
        weight (Tensor): h, (C_conv, K, K).
    """

    def __init__(self, channels: int, grid: SharingGrid, std: float = 0.02) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.empty(channels, grid.kernel_size, grid.kernel_size))
        nn.init.trunc_normal_(self.weight, std=std)

    def forward(self) -> Tensor:
        """Return the sums of the embedding over the cells, (C_conv, k', k')."""
        return sum_over_cells(self.weight, self.grid)

    def extra_repr(self) -> str:
        return f'{self.weight.shape[0]}, kernel_size={self.grid.kernel_size}'
