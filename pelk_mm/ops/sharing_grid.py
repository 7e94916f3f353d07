"""The sharing grid, which maps each position of a large kernel to a parameter (PeLK, Sec. 4.1, Eq. 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import NamedTuple, cast

import torch
from torch import Tensor


def _as_int(name: str, value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'{name} must be an int, got {value!r} of type {type(value).__name__}')
    return value


class Piece(NamedTuple):
    """A part of a cell along one axis: ``width`` taps, a power of two, from ``start`` on.

    Attributes:
        cell (int): Index of the cell, 0 to k' - 1.
        start (int): First tap, as an offset from the kernel's centre.
        width (int): Number of taps.
    """

    cell: int
    start: int
    width: int


@dataclass(frozen=True)
class SharingGrid:
    """Cell widths of a symmetric one-dimensional grid; the kernel's cells are its outer product with itself.

    Position ``(x, y)`` of the expanded kernel takes ``theta[a, b]`` where ``x`` lies in the a-th cell and ``y`` in
    the b-th. Build one with :meth:`from_kernel_size`, :meth:`from_half` or :meth:`create`; grids are immutable,
    hashable and compare by their widths.

    Args:
        half (tuple[int, ...]): Widths from the outermost cell to the centre cell, as the paper prints them, e.g.
            ``(9, 8, 4, 2, 1, 1, 1)`` for 51x51. The centre's width must be odd.

    Attributes:
        widths (tuple[int, ...]): All k' cell widths, from one border of the kernel to the other.
        kernel_size (int): Side K of the expanded kernel.
        num_cells (int): Side k' of the stored kernel theta.
        starts (tuple[int, ...]): First tap of each cell, as an offset from the kernel's centre: ``-K//2`` for the
            first.
        center (int): Side of the fine-grained centre: the number of unit cells around the middle, 0 if the middle is
            wider.
        cells (tuple[int, ...]): The cell of each of the K positions.

    Raises:
        ValueError: If ``half`` is empty, a width is below 1, or the centre's width is even.
        TypeError: If ``half`` is not a sequence, or a width is not an int.
    """

    half: tuple[int, ...]
    # Set in the constructor: torch.compile does not trace a cached property, which holds a lock.
    widths: tuple[int, ...] = field(init=False, repr=False, compare=False)
    kernel_size: int = field(init=False, repr=False, compare=False)
    num_cells: int = field(init=False, repr=False, compare=False)
    starts: tuple[int, ...] = field(init=False, repr=False, compare=False)
    center: int = field(init=False, repr=False, compare=False)
    cells: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.half, str) or not isinstance(self.half, Sequence):
            raise TypeError(f'half grid must be a sequence of ints, got {self.half!r}')
        half = tuple(_as_int('every width of a sharing grid', width) for width in self.half)
        if not half:
            raise ValueError('half grid must hold at least the centre cell, got an empty sequence')
        if min(half) < 1:
            raise ValueError(f'every width of a sharing grid must be at least 1, got {list(half)}')
        if half[-1] % 2 == 0:
            raise ValueError(f'the centre (last) width of a half grid must be odd, got {half[-1]} in {list(half)}')
        widths = half + half[-2::-1]
        size = sum(widths)
        units = len(list(takewhile(lambda width: width == 1, reversed(half))))
        for name, value in dict(
                half=half,
                widths=widths,
                kernel_size=size,
                num_cells=len(widths),
                starts=tuple(start - size // 2 for start in accumulate(widths[:-1], initial=0)),
                center=max(2 * units - 1, 0),
                cells=tuple(cell for cell, width in enumerate(widths) for _ in range(width))).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_half(cls, widths: Sequence[int], kernel_size: int | None = None) -> SharingGrid:
        """Build a grid from explicit widths, outermost first, centre last.

        Args:
            widths (Sequence[int]): The half grid, e.g. ``[8, 4, 2, 1, 1, 1]`` (33x33, Table 5).
            kernel_size (int, optional): If given, the grid must cover exactly this kernel.

        Raises:
            ValueError: If the widths are not a grid, or do not sum to ``kernel_size``.
        """
        grid = cls(cast('tuple[int, ...]', widths))
        if kernel_size is not None and grid.kernel_size != kernel_size:
            raise ValueError(f'grid {list(grid.half)} covers a kernel of {grid.kernel_size}, but kernel_size is '
                             f'{kernel_size}: 2 * sum(widths) - centre must equal kernel_size')
        return grid

    @classmethod
    def from_kernel_size(cls, kernel_size: int, center: int = 5, base: int = 2) -> SharingGrid:
        """Build the paper's grid: unit cells in the centre, then ``base, base**2, ...``, the outermost takes the rest.

        Args:
            kernel_size (int): K, odd.
            center (int): Side of the fine-grained centre, 2 r_c + 1 (Eq. 2), odd. Defaults to 5.
            base (int): Growth m of the cells outside the centre (Eq. 2). Defaults to 2.

        Raises:
            ValueError: If ``kernel_size`` or ``center`` is even or below 1, ``center`` exceeds ``kernel_size``, or
                ``base`` is below 1.
        """
        for name, value in (('kernel_size', kernel_size), ('center', center)):
            if _as_int(name, value) < 1 or value % 2 == 0:
                raise ValueError(f'{name} must be a positive odd number, got {value}')
        if center > kernel_size:
            raise ValueError(f'center must not exceed kernel_size, got center {center} and kernel_size {kernel_size}')
        if _as_int('base', base) < 1:
            raise ValueError(f'base must be at least 1, got {base}')
        outwards = [1] * (center // 2 + 1)
        rest, width = (kernel_size - center) // 2, base
        while rest:
            outwards.append(min(width, rest))
            rest -= outwards[-1]
            width *= base
        return cls(tuple(reversed(outwards)))

    @classmethod
    def dense(cls, kernel_size: int) -> SharingGrid:
        """Build the grid of unit cells: nothing is shared, theta is the kernel."""
        return cls.from_kernel_size(kernel_size, center=kernel_size)

    @classmethod
    def create(cls,
               kernel_size: int | Sequence[int] | SharingGrid | None,
               grid: Sequence[int] | SharingGrid | None = None,
               center: int = 5,
               base: int = 2) -> SharingGrid:
        """Build a grid from any form that configs write.

        Args:
            kernel_size (int | Sequence[int] | SharingGrid | None): K, or an explicit half grid in its place.
            grid (Sequence[int] | SharingGrid | None): An explicit (half) grid; must fit ``kernel_size`` if both are
                given. ``center`` and ``base`` are then ignored.
            center (int): See :meth:`from_kernel_size`.
            base (int): See :meth:`from_kernel_size`.
        """
        if grid is None and not isinstance(kernel_size, int):
            kernel_size, grid = None, kernel_size
        if grid is None:
            return cls.from_kernel_size(_as_int('kernel_size', kernel_size), center, base)
        half = grid.half if isinstance(grid, SharingGrid) else grid
        if isinstance(half, str) or not isinstance(half, Sequence):
            raise TypeError(f'grid must be a SharingGrid or a half grid (a sequence of ints), got {half!r}')
        # Beside an explicit grid, kernel_size is only compared with the size of that grid.
        return cls.from_half(half, cast('int | None', kernel_size))

    @property
    def is_dense(self) -> bool:
        """Whether every cell is a single tap."""
        return self.num_cells == self.kernel_size

    @property
    def stored_ratio(self) -> float:
        """Share of the K*K kernel that is stored, (k'/K)**2."""
        return (self.num_cells / self.kernel_size)**2

    def reachable(self, size: int) -> range:
        """Return the cells that reach from one position of a map's axis to another, or to the same.

        All other cells lie outside the map for every position of the kernel. The reachable cells are consecutive.

        Args:
            size (int): Side H or W of the map, at least 1.

        Returns:
            range: Indices of cells, symmetric around the centre cell.

        Raises:
            ValueError: If ``size`` is below 1.
        """
        if size < 1:
            raise ValueError(f'size must be at least 1, got {size}')
        first = next(cell for cell, start in enumerate(self.starts) if start + self.widths[cell] > 1 - size)
        return range(first, self.num_cells - first)

    def pieces(self, cells: range | None = None) -> tuple[Piece, ...]:
        """Cut cells into pieces of powers of two, whose sums are made by doubling.

        Args:
            cells (range, optional): The cells, e.g. those of :meth:`reachable`. Defaults to all.

        Returns:
            tuple[Piece, ...]: From the first tap to the last; within a cell the widest piece comes first.
        """
        pieces = []
        for cell in range(self.num_cells) if cells is None else cells:
            start, rest = self.starts[cell], self.widths[cell]
            while rest:
                width = 1 << rest.bit_length() - 1
                pieces.append(Piece(cell, start, width))
                start, rest = start + width, rest - width
        return tuple(pieces)


def check_theta(theta: Tensor, grid: SharingGrid) -> None:
    """Raise unless ``theta`` is (C, k', k') for ``grid``."""
    cells = grid.num_cells
    if theta.ndim != 3 or theta.shape[-2:] != (cells, cells):
        raise ValueError(f'theta must have shape (C, {cells}, {cells}) for the grid {list(grid.half)} (half, outermost '
                         f'first), got {tuple(theta.shape)}')


def expand_kernel(theta: Tensor, grid: SharingGrid) -> Tensor:
    """Expand the stored kernel to the large one (Eq. 1).

    Args:
        theta (Tensor): (C, k', k'), any dtype.
        grid (SharingGrid): The cells.

    Returns:
        Tensor: (C, K, K), differentiable.

    Raises:
        ValueError: If ``theta`` does not fit the grid.
    """
    check_theta(theta, grid)
    size = grid.kernel_size
    return theta.flatten(1).index_select(1, _cell_of_tap(grid, theta.device)).unflatten(1, (size, size))


def sum_over_cells(kernel: Tensor, grid: SharingGrid) -> Tensor:
    """Sum a large kernel over each cell: the adjoint of :func:`expand_kernel`.

    Args:
        kernel (Tensor): (C, K, K), floating point.
        grid (SharingGrid): The cells.

    Returns:
        Tensor: (C, k', k'), differentiable.

    Raises:
        ValueError: If ``kernel`` is not (C, K, K).
    """
    size, cells = grid.kernel_size, grid.num_cells
    if kernel.ndim != 3 or kernel.shape[-2:] != (size, size):
        raise ValueError(f'kernel must have shape (C, {size}, {size}) for the grid {list(grid.half)}, got '
                         f'{tuple(kernel.shape)}')
    sums = kernel.new_zeros(kernel.shape[0], cells * cells)
    return sums.index_add(1, _cell_of_tap(grid, kernel.device), kernel.flatten(1)).unflatten(1, (cells, cells))


def _cell_of_tap(grid: SharingGrid, device: torch.device) -> Tensor:
    """Return the cell, of k' * k', of each of the K * K taps, row by row."""
    index = torch.tensor(grid.cells, device=device)
    return (index.unsqueeze(1) * grid.num_cells + index).flatten()
