"""The device-independent fast backend: box sums and batched matrix products in plain PyTorch. See README.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sharing_grid import SharingGrid

# Bytes of intermediate results at a time: small enough for a processor's cache and for the README's memory promise.
_CPU_CHUNK_BYTES = 4 << 20
_DEVICE_CHUNK_BYTES = 24 << 20
# Pixels that one matrix product may sum over: the rounding error of a plain fp32 sum grows with its length.
_SUM_LENGTH = 8192


def why_not(x: Tensor, grid: SharingGrid) -> str | None:
    return None


def forward(x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid) -> Tensor:
    width = x.shape[-1]
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    rows, cols = _cells(grid, x.shape[-2]), _cells(grid, width)
    mixing = _reachable(_compute(theta), rows, cols).transpose(1, 2)
    for n, c, y in _chunks(x, rows, cols):
        boxes = _vertical_boxes(x[n, c], rows, y)
        mixed = torch.matmul(mixing[c], boxes.flatten(3)).unflatten(-1, (-1, width))
        total = _sum_horizontally(mixed, cols)
        if bias is not None:
            total += _compute(bias[c])[:, None, None]
        out[n, c, y] = total.to(out.dtype)
    return out


def theta_grad(x: Tensor, grad_output: Tensor, grid: SharingGrid) -> Tensor:
    channels, height, width = x.shape[1:]
    out = _compute(x.new_zeros(channels, grid.num_cells, grid.num_cells))
    if x.numel() == 0:
        return out.to(x.dtype)
    rows, cols = _cells(grid, height), _cells(grid, width)
    reachable = _reachable(out, rows, cols)
    mirrored = [_Cell(cell.index, 1 - cell.end, 1 - cell.start) for cell in cols]
    for n, c, y in _chunks(x, rows, cols):
        boxes = _vertical_boxes(x[n, c], rows, y).flatten(3)
        # sum of dY(y, x - i) over the taps of a cell: the vertical boxes of the transposed map, the cells mirrored.
        grads = _vertical_boxes(grad_output[n, c, y].transpose(-1, -2), mirrored, slice(0, width))
        grads = grads.transpose(-1, -2).flatten(3)
        for box, grad in zip(boxes.split(_SUM_LENGTH, -1), grads.split(_SUM_LENGTH, -1)):
            reachable[c] += torch.matmul(box, grad.transpose(-1, -2)).sum(0)
    return out.to(x.dtype)


class _Cell:
    """Taps ``start ... end - 1``, measured from the kernel's centre."""

    def __init__(self, index: int, start: int, end: int) -> None:
        self.index, self.start, self.end = index, start, end


@lru_cache(maxsize=1024)
def _cells(grid: SharingGrid, size: int) -> tuple[_Cell, ...]:
    """The cells that reach a map of ``size`` from inside it at all; they are consecutive."""
    spans = [_Cell(i, start, start + width) for i, (start, width) in enumerate(zip(grid.starts, grid.widths))]
    return tuple(cell for cell in spans if cell.start < size and cell.end - 1 > -size)


def _powers(number: int) -> list[int]:
    """Powers of two that sum to ``number``, largest first."""
    return [1 << level for level in reversed(range(number.bit_length())) if number >> level & 1]


def _compute(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _reachable(theta: Tensor, rows: Sequence[_Cell], cols: Sequence[_Cell]) -> Tensor:
    return theta[:, rows[0].index:rows[-1].index + 1, cols[0].index:cols[-1].index + 1]


def _chunks(x: Tensor, rows: Sequence[_Cell], cols: Sequence[_Cell]) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of batch, channels and rows whose intermediate results fit the budget."""
    batch, channels, height, width = x.shape
    budget = _CPU_CHUNK_BYTES if x.device.type == 'cpu' else _DEVICE_CHUNK_BYTES
    # Boxes and mixed rows, and the boxes of powers of two with their halo.
    halo = rows[-1].end - rows[0].start
    row_bytes = 2 * max(len(rows), len(cols)) * width * max(4, x.element_size())
    step_y = min(height, max(budget // row_bytes, halo // 4, 1))
    planes = max(1, budget // (row_bytes * step_y))
    step_c = min(channels, planes)
    step_n = max(1, planes // channels)
    for n in range(0, batch, step_n):
        for c in range(0, channels, step_c):
            for y in range(0, height, step_y):
                yield slice(n, n + step_n), slice(c, c + step_c), slice(y, min(y + step_y, height))


def _vertical_boxes(planes: Tensor, cells: Sequence[_Cell], rows: slice) -> Tensor:
    """For each cell the sums over its taps, ``r_a(y) = sum_i X(y + i)``: (N, C, H, W) -> (N, C, cells, rows, W)."""
    height, count = planes.shape[-2], rows.stop - rows.start
    first = min(cell.start for cell in cells)
    low, high = rows.start + first, rows.stop - 1 + max(cell.end for cell in cells)
    inside = _compute(planes[..., max(low, 0):max(min(high, height), 0), :])
    above = min(max(-low, 0), high - low)
    padded = F.pad(inside, (0, 0, above, high - low - above - inside.shape[-2]))
    # boxes[w](y) = padded(y) + ... + padded(y + w - 1): a box of 2w is two boxes of w.
    boxes, size = {1: padded}, 1
    while 2 * size <= max(cell.end - cell.start for cell in cells):
        box = boxes[size]
        boxes[2 * size] = box[..., :-size, :] + box[..., size:, :]
        size *= 2
    out = padded.new_empty(*planes.shape[:2], len(cells), count, planes.shape[-1])
    for i, cell in enumerate(cells):
        offset = cell.start - first
        for number, part in enumerate(_powers(cell.end - cell.start)):
            box = boxes[part][..., offset:offset + count, :]
            if number == 0:
                out[:, :, i] = box
            else:
                out[:, :, i] += box
            offset += part
    return out


def _sum_horizontally(mixed: Tensor, cells: tuple[_Cell, ...]) -> Tensor:
    """``out(x) = sum over cells b and their taps i of t_b(x + i)``: (N, C, cells, H, W) -> (N, C, H, W).

    With u_j the sum of the shifted t_b over all boxes of 2**j taps, this is u_0 + B_1(u_1 + B_2(u_2 + ...)), where
    ``(B_n v)(x) = v(x) + v(x + n)``.
    """
    width = mixed.shape[-1]
    pieces: dict[int, list[tuple[int, int]]] = {}
    for i, cell in enumerate(cells):
        offset = cell.start
        for part in _powers(cell.end - cell.start):
            pieces.setdefault(part, []).append((i, offset))
            offset += part
    above, size = None, max(pieces)
    while True:
        total = mixed.new_zeros(*mixed.shape[:2], mixed.shape[3], width + size - 1)
        for i, offset in pieces.get(size, ()):
            low, high = max(0, -offset), min(width + size - 1, width - offset)
            if low < high:
                total[..., low:high] += mixed[:, :, i, :, low + offset:high + offset]
        if above is not None:
            total += above[..., :width + size - 1] + above[..., size:]
        if size == 1:
            return total
        above, size = total, size // 2
