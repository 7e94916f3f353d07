"""What a forward call executes on each backend, counted: multiply-adds, and the additions of box sums.

``costs.py`` estimates time from a few constants; here the loops themselves are followed. All counts are of fp32 and
leave out the addition of the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..sharing_grid import SharingGrid
from . import boxes, triton_backend
from .costs import cheapest

# The automatic choice on a CPU with a C++ compiler.
_CPU_BACKENDS = ('native', 'boxes', 'reference')

# Constants of native.cpp and what it makes of AVX-512: elements of a vector, vectors of a register tile.
_LANES, _MIX_X = 16, 4
_PLANES_BYTES, _CHUNK_BYTES = 1 << 20, 24 << 10


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
    """Count what ``peripheral_conv2d`` executes for x, in fp32. Nothing is run, and x may be on the meta device.

    - ``reference``: K * K multiply-adds an output. What of the padding a library of the device skips is its own affair.
    - ``boxes``: on the CPU, whose chunks are smaller than other devices', so halos are summed more often.
    - ``native``: with vectors of 16 elements (AVX-512), rows padded to whole vectors.
    - ``triton``: the three TF32 products of each fp32 one, whole tiles, on contiguous rows.

    Args:
        backend (str): One of these names, or ``'auto'`` for the automatic choice on a CPU with a C++ compiler.
        x (Tensor): (N, C, H, W); the automatic choice depends on its strides, too.
        grid (SharingGrid): The cells.

    Raises:
        ValueError: If there is no such backend.
    """
    if backend == 'auto':
        backend = cheapest(_CPU_BACKENDS, 'forward', x, grid)
    if backend not in _COUNTERS:
        raise ValueError(f'backend must be "auto" or one of {sorted(_COUNTERS)}, got {backend!r}')
    if not x.numel():
        return Operations()
    batch, channels, height, width = x.shape
    return _COUNTERS[backend](batch, channels, height, width, grid)


def _reference(batch: int, channels: int, height: int, width: int, grid: SharingGrid) -> Operations:
    return Operations(batch * channels * height * width * grid.kernel_size**2)


class _Additions(TorchDispatchMode):
    """Counts what the plain PyTorch backend runs."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = Operations()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            self.operations += Operations(additions=out.numel())
        elif func.overloadpacket is torch.ops.aten.bmm:
            self.operations += Operations(multiply_adds=out.numel() * args[0].shape[-1])
        return out


@lru_cache(maxsize=1024)
def _boxes(batch: int, channels: int, height: int, width: int, grid: SharingGrid) -> Operations:
    x = torch.empty(batch, channels, height, width, device='meta')
    theta = torch.empty(channels, grid.num_cells, grid.num_cells, device='meta')
    with _Additions() as counter:
        boxes.forward(x, theta, None, grid)
    return counter.operations


class _Axis:
    """The cells that reach the map, and their cut into boxes of powers of two, as ``Axis`` of native.cpp."""

    def __init__(self, grid: SharingGrid, size: int) -> None:
        spans = [(start, start + width) for start, width in zip(grid.starts, grid.widths)]
        self.spans = [(start, end) for start, end in spans if start < size and end - 1 > -size]
        widths = [end - start for start, end in self.spans]
        self.levels = max(widths).bit_length() - 1
        # Pieces of 2**level taps.
        self.pieces = [sum(width >> level & 1 for width in widths) for level in range(self.levels + 1)]
        powers = [1 << level for level in range(self.levels + 1)]
        self.widths = powers + sorted(set(widths) - set(powers))
        self.first, self.last, self.end = self.spans[0][0], self.spans[-1][0], self.spans[-1][1]


@lru_cache(maxsize=1024)
def _native(batch: int, channels: int, height: int, width: int, grid: SharingGrid) -> Operations:
    rows, cols = _Axis(grid, height), _Axis(grid, width)
    row_size = _round_up(width, _LANES)
    halo = rows.end - rows.first
    band = min(height, max(_PLANES_BYTES // (4 * row_size * len(rows.widths)) - halo, halo // 2, 8))
    band = -(-height // -(-height // band))
    mixed_row = (_round_up(max(0, -cols.first), _LANES) + row_size +
                 _round_up(max(0, cols.end) + (1 << cols.levels), _LANES) + _LANES)
    chunk = min(max(_CHUNK_BYTES // (4 * len(cols.spans) * mixed_row), 1), band)
    total = Operations()
    for y0 in range(0, height, band):
        y1 = min(height, y0 + band)
        total += Operations(additions=_native_vertical(rows, height, y0, y1) * row_size)
        for y in range(y0, y1, chunk):
            count = min(chunk, y1 - y)
            active = sum(y + count - 1 + end > 0 and y + start < height for start, end in rows.spans)
            total += Operations(active * _native_mixed(cols, width, count), _native_horizontal(cols, width, count))
    return total * (batch * channels)


def _native_vertical(rows: _Axis, height: int, y0: int, y1: int) -> int:
    """Row additions of ``Boxes::build`` for the outputs of rows y0 ... y1 - 1."""
    first = y0 + rows.first
    end = max(y1 + rows.last, min(height, y1 - 1 + rows.end))
    below = min(end, height)
    additions = 0
    for width in rows.widths:
        low = min(max(1 - width, first), end)
        high = min(max(height, low), end)
        bits = [1 << level for level in reversed(range(rows.levels + 1)) if width >> level & 1]
        # A power of two is two halves, another width its powers, each but the first an addition if it is on the map.
        parts = [width // 2, width // 2] if len(bits) == 1 and width > 1 else bits
        offset = 0
        for part in parts[:-1]:
            offset += part
            additions += max(0, min(high, below - offset) - low)
    return additions


def _native_mixed(cols: _Axis, width: int, count: int) -> int:
    """Multiply-adds of ``mix_rows`` for each active row cell: tiles of vectors times the columns of theta they need."""
    vectors = _round_up(width, _LANES) // _LANES
    total, products = count * vectors, 0
    tiled = total // _MIX_X * _MIX_X
    for v in range(0, tiled, _MIX_X):
        needed = len(cols.spans)
        if v // vectors == (v + _MIX_X - 1) // vectors:
            left, right = v % vectors * _LANES, min((v % vectors + _MIX_X) * _LANES, width) - 1
            needed = sum(left <= width - 2 + end and start <= right for start, end in cols.spans)
        products += needed * _MIX_X
    return (products + (total - tiled) * len(cols.spans)) * _LANES


def _native_horizontal(cols: _Axis, width: int, count: int) -> int:
    """Additions of ``sum_rows``."""
    additions = 0
    for level, pieces in enumerate(cols.pieces):
        length = _round_up(width + (1 << level) - 1, _LANES)
        additions += length * (pieces + 2 * (level < cols.levels))
    return additions * count


@lru_cache(maxsize=1024)
def _triton(batch: int, channels: int, height: int, width: int, grid: SharingGrid) -> Operations:
    align = next(align for align in (4, 2, 1) if width % align == 0)
    tile, (strips, _, column_tiles) = triton_backend._forward_tile(batch, channels, height, width, align)
    first, last = triton_backend._reachable_cells(grid, height)
    half = grid.kernel_size // 2
    chunks = 0
    for start in range(0, column_tiles * tile.BN, tile.BN):
        first_column = max(start - half, 0) // tile.BK * tile.BK
        chunks += -(-(min(start + tile.BN + half, width) - first_column) // tile.BK)
    cells = grid.widths[first:last]
    # Two rows of a strip: one window's rows are summed, the other shares all but one of them.
    sums = tile.G * tile.BK * sum(cell + 1 for cell in cells)
    products = 2 * tile.G * tile.BN * len(cells)
    return Operations(3 * products * tile.BK, sums + products) * (chunks * strips * channels)


_COUNTERS = dict(native=_native, triton=_triton, boxes=_boxes, reference=_reference)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
