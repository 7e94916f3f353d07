"""The peripheral convolution as a module (PeLK, Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
            cover ``kernel_size`` if that is given too; ``center`` and ``base`` then have no say.
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

    @classmethod
    def from_conv(cls,
                  conv: nn.Conv2d,
                  kernel_size: int | Sequence[int] | SharingGrid,
                  center: int | None = None,
                  base: int = 2,
                  backend: str | None = None) -> PeripheralConv2d:
        """Make a peripheral convolution that computes the same as a depthwise one; its outer cells are zero.

        Args:
            conv (nn.Conv2d): Depthwise, k x k with k odd, stride 1, zero padding k // 2 (or ``'same'``).
            kernel_size (int | Sequence[int] | SharingGrid): K, at least k, or an explicit grid with such a centre.
            center (int, optional): Side of the fine-grained centre, which grows to k where that is larger. Defaults to
                5, or K if that is smaller.
            base (int): Growth of the cells outside the centre. Defaults to 2.
            backend (str, optional): See :func:`pelk_mm.ops.peripheral_conv2d`.

        Returns:
            PeripheralConv2d: With the dtype, the device, ``requires_grad`` and the mode of ``conv``.

        Raises:
            TypeError: If ``conv`` is no ``nn.Conv2d``.
            ValueError: If no peripheral convolution computes the same, with the reason.

        Examples:
            >>> import torch
            >>> from pelk_mm.layers import PeripheralConv2d
            >>> conv = torch.nn.Conv2d(8, 8, 7, padding=3, groups=8)
            >>> large, x = PeripheralConv2d.from_conv(conv, 51), torch.rand(1, 8, 32, 32)
            >>> large.grid.center, torch.allclose(large(x), conv(x), atol=1e-5)
            (7, True)
        """
        check_convertible(conv)
        side, weight = conv.kernel_size[0], conv.weight
        if isinstance(kernel_size, int):
            if side > kernel_size:
                raise ValueError(f'kernel_size must hold the kernel of conv, {side} x {side}, got {kernel_size}')
            center = max(min(5, kernel_size) if center is None else center, side)
        layer = cls(conv.in_channels, kernel_size, 5 if center is None else center, base, bias=conv.bias is not None,
                    backend=backend).to(weight.device, weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(embed_kernel(weight, layer.grid))
            layer.weight.requires_grad_(weight.requires_grad)
            if conv.bias is not None and layer.bias is not None:
                layer.bias.copy_(conv.bias)
                layer.bias.requires_grad_(conv.bias.requires_grad)
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return peripheral_conv2d(x, self._theta(), self.grid, self.bias, backend=self.backend)

    def position_bias(self, position_cell_sums: Tensor) -> Tensor:
        """The constant of Eq. 3 for each channel.

        Args:
            position_cell_sums (Tensor): (C, k', k'), from :class:`KernelPositionEmbedding`.

        Returns:
            Tensor: (C,).
        """
        return (self._theta() * position_cell_sums).sum((-2, -1))

    def kernel(self) -> Tensor:
        """The expanded kernel, (C, K, K)."""
        return expand_kernel(self._theta(), self.grid)

    def _theta(self) -> Tensor:
        return with_strides_of_gradient(self.weight).squeeze(1)

    @property
    def fine_shape(self) -> tuple[int, int]:
        """Sides of the centre in which every tap has its own parameter: what a smaller kernel may merge into."""
        return self.grid.center, self.grid.center

    def extra_repr(self) -> str:
        return f'{self.channels}, kernel_size={self.grid.kernel_size}, half_grid={list(self.grid.half)}, ' \
               f'bias={self.bias is not None}'


def embed_kernel(kernel: Tensor, grid: SharingGrid) -> Tensor:
    """Return theta of a grid whose expanded kernel is a smaller one with zeros around it.

    Args:
        kernel (Tensor): (C, 1, k, k), k odd.
        grid (SharingGrid): With a fine-grained centre of k x k or more.

    Returns:
        Tensor: (C, 1, k', k').

    Raises:
        ValueError: If the centre is smaller than the kernel.
    """
    side = kernel.shape[-1]
    if grid.center < side:
        raise ValueError(f'the centre of the grid must hold a kernel of {side} x {side}, got a centre of {grid.center} '
                         f'in {list(grid.half)}')
    return F.pad(kernel, 4 * [(grid.num_cells - side) // 2])


def check_convertible(conv: nn.Module, name: str = 'conv') -> None:
    """Raise unless a convolution is depthwise, of an odd square kernel and stride 1, and keeps the size by zeros.

    Args:
        conv (nn.Module): The convolution.
        name (str): What the message calls it. Defaults to 'conv'.

    Raises:
        TypeError: If it is no ``nn.Conv2d``.
        ValueError: With the reason.
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f'{name} must be an nn.Conv2d, got {type(conv).__name__}')
    height, width = conv.kernel_size
    same = (height // 2, width // 2)
    expected = {
        'groups': (conv.groups, conv.in_channels, f'its number of channels, {conv.in_channels} (depthwise)'),
        'out_channels': (conv.out_channels, conv.in_channels, f'its in_channels, {conv.in_channels}'),
        'kernel_size': ((height, width), (height | 1, height | 1), 'odd and square'),
        'stride': (conv.stride, (1, 1), '1'),
        'dilation': (conv.dilation, (1, 1), '1'),
        'padding': (same if conv.padding == 'same' else conv.padding, same, f"'same', {same}"),
        'padding_mode': (conv.padding_mode, 'zeros', "'zeros'"),
    }
    for argument, (value, wanted, text) in expected.items():
        if value != wanted:
            raise ValueError(f'{name} cannot become a peripheral convolution: its {argument} must be {text}, got '
                             f'{value!r}')
