"""Arithmetic of a forward call on each backend: multiply-adds, and the additions of box sums.

The counts follow from the method (README.md, TRITON.md), of fp32 and without the bias. Not in them: halos that bands or
chunks sum again, and cells that the native backend skips where they lie outside for several rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from ..sharing_grid import SharingGrid
from . import triton_backend
from .backends import ALIASES
from .costs import cheapest, num_elements, work_per_element


@dataclass(frozen=True)
class Operations:
    """Arithmetic of a call.

    Attributes:
        multiply_adds (int): Products that are accumulated.
        additions (int): Additions beside them.
    """

    multiply_adds: int = 0
    additions: int = 0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.multiply_adds + other.multiply_adds, self.additions + other.additions)

    def __mul__(self, times: int) -> Operations:
        return Operations(self.multiply_adds * times, self.additions * times)


def executed_operations(backend: str, x: Tensor, grid: SharingGrid) -> Operations:
    """Count the arithmetic of ``peripheral_conv2d`` for x, in fp32. Nothing is run, and x may be on the meta device.

    - ``reference``: K * K multiply-adds an output. Padding taps count even if the library skips them.
    - ``box_sums``: a multiply-add for each pair of cells that reach the map, and the sums of README.md.
    - ``native``: the same with rows padded to vectors of 16 elements (AVX-512); or, where that is less, with channels
      padded to them and without cells that lie outside the map for an output.
    - ``triton``: the three TF32 products of each fp32 one, full tiles, on contiguous rows.

    Args:
        backend (str): One of these names, or ``'auto'`` for the automatic choice on a CPU with a C++ compiler.
        x (Tensor): (N, C, H, W); the automatic choice depends on its strides, too.
        grid (SharingGrid): The cells.

    Raises:
        ValueError: If there is no such backend, or its operations are not counted.
    """
    backend = resolve_counted(backend)
    if backend == 'auto':
        backend = cheapest(tuple(COUNTERS), 'forward', x, grid) if x.numel() else 'reference'
    batch, channels, height, width = x.shape
    return COUNTERS[backend](batch, channels, height, width, grid) if x.numel() else Operations()


def resolve_counted(backend: str) -> str:
    """Return ``'auto'`` or the name of ``COUNTERS`` that ``backend`` stands for.

    Raises:
        ValueError: If there is no such backend, or its operations are not counted.
    """
    resolved = ALIASES.get(backend, backend)
    if resolved not in ('auto', *COUNTERS):
        raise ValueError(f'backend must be "auto" or one of {sorted(COUNTERS)}, whose operations are counted, got '
                         f'{backend!r}')
    return resolved


def _reference(batch: int, channels: int, height: int, width: int, grid: SharingGrid) -> Operations:
    return Operations(batch * channels * height * width * grid.kernel_size**2)


def _box_sums(batch: int, channels: int, height: int, width: int, grid: SharingGrid) -> Operations:
    rows, cols = grid.reachable(height), grid.reachable(width)
    sums = _row_sums([grid.widths[cell] for cell in rows]) + _column_sums(grid, cols)
    return Operations(len(rows) * len(cols), sums) * (batch * channels * height * width)


def _native(batch: int, channels: int, height: int, width: int, grid: SharingGrid) -> Operations:
    shape, rows = (batch, channels, height, width), grid.reachable(height)
    # Cells of one width share the sums.
    sums = _row_sums({grid.widths[cell] for cell in rows}) + _column_sums(grid, grid.reachable(width))
    elements = num_elements('native', shape, grid)
    return Operations(round(elements * work_per_element('native', 'forward', shape, grid)), sums * elements)


def _row_sums(widths: Collection[int]) -> int:
    """Count the additions of an output's sums over so many rows: doublings, and further powers of two."""
    return max(widths).bit_length() - 1 + sum(width.bit_count() - 1 for width in widths)


def _column_sums(grid: SharingGrid, cells: range) -> int:
    """Count the additions of an output's sum over columns: each piece, and two for each level below the widest."""
    pieces = grid.pieces(cells)
    return len(pieces) + 2 * (max(piece.width for piece in pieces).bit_length() - 1)


def _triton(batch: int, channels: int, height: int, width: int, grid: SharingGrid) -> Operations:
    align = next(align for align in (4, 2, 1) if width % align == 0)
    tile, (programs, _) = triton_backend._forward_tile(batch, channels, height, width, align)
    half = grid.kernel_size // 2
    starts = range(0, width, tile.BN)
    strips = programs // len(starts)
    chunks = 0
    for start in starts:
        first_column = max(start - half, 0) // tile.BK * tile.BK
        chunks += -(-(min(start + tile.BN + half, width) - first_column) // tile.BK)
    widths = [grid.widths[cell] for cell in grid.reachable(height)]
    # Two rows of a strip: one window's rows are summed, the other shares all but one of them.
    sums = tile.G * tile.BK * sum(size + 1 for size in widths)
    products = 2 * tile.G * tile.BN * len(widths)
    return Operations(3 * products * tile.BK, sums + products) * (chunks * strips * channels)


COUNTERS = dict(native=_native, triton=_triton, box_sums=_box_sums, reference=_reference)
"""By backend: ``(N, C, H, W, grid) -> Operations``."""
