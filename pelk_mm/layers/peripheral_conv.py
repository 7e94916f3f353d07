"""The peripheral convolution as a module (PeLK, Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops import SharingGrid, expand_kernel, peripheral_conv2d
from .conv import with_strides_of_gradient


class PeripheralConv2d(nn.Module):
    """Depthwise K x K convolution, stride 1, padding K//2, whose kernel is shared over the cells of a grid.

    Args:
        channels (int): C.
        kernel_size (int | Sequence[int] | SharingGrid, optional): K (odd), or an explicit grid in its place.
        center (int): Side of the fine-grained centre. Defaults to 5.
        base (int): Growth of the cells outside the centre. Defaults to 2.
        grid (Sequence[int] | SharingGrid, optional): Explicit half grid, outermost width first, centre last. It must
            cover ``kernel_size`` if that is given too; ``center`` and ``base`` are then ignored.
        bias (bool): Whether to add a bias. Defaults to True, as ``nn.Conv2d``.
        backend (str, optional): See :func:`pelk_mm.ops.peripheral_conv2d`.

    Attributes:
        weight (Tensor): theta, (C, 1, k', k'), laid out as the weight of a depthwise ``nn.Conv2d``.
        bias (Tensor | None): (C,).

    Raises:
        ValueError: If the grid cannot be built, see :meth:`pelk_mm.ops.SharingGrid.create`.
    """

    def __init__(self,
                 channels: int,
                 kernel_size: int | Sequence[int] | SharingGrid | None = None,
                 center: int = 5,
                 base: int = 2,
                 grid: Sequence[int] | SharingGrid | None = None,
                 bias: bool = True,
                 backend: str | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.grid = SharingGrid.create(kernel_size, grid, center, base)
        self.backend = backend
        cells = self.grid.num_cells
        self.weight = nn.Parameter(torch.empty(channels, 1, cells, cells))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return peripheral_conv2d(x, self._theta(), self.grid, self.bias, backend=self.backend)

    def position_bias(self, position_cell_sums: Tensor) -> Tensor:
        """Return the constant of Eq. 3 for each channel.

        Args:
            position_cell_sums (Tensor): (C, k', k'), from :class:`KernelPositionEmbedding`.

        Returns:
            Tensor: (C,).
        """
        return (self._theta() * position_cell_sums).sum((-2, -1))

    def kernel(self) -> Tensor:
        """Return the expanded kernel, (C, K, K)."""
        return expand_kernel(self._theta(), self.grid)

    def _theta(self) -> Tensor:
        return with_strides_of_gradient(self.weight).squeeze(1)

    @property
    def fine_shape(self) -> tuple[int, int]:
        """Sides of the centre in which every tap has its own parameter, so that a smaller kernel can merge into it."""
        return self.grid.center, self.grid.center

    def extra_repr(self) -> str:
        return f'{self.channels}, kernel_size={self.grid.kernel_size}, half_grid={list(self.grid.half)}, ' \
               f'bias={self.bias is not None}'
