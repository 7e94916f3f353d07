"""The device-independent fast backend: box sums and batched matrix products in plain PyTorch. See README.md.

:func:`sum_cells` and :func:`sum_boxes` need only slices and additions; the ONNX form uses them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sharing_grid import Piece, SharingGrid

# Bytes of intermediate results at a time: small enough for a processor's cache and for the bounds in the README.
_CPU_CHUNK_BYTES = 4 << 20
_DEVICE_CHUNK_BYTES = 24 << 20
# Pixels that one matrix product may sum over: the rounding error of a plain fp32 sum grows with its length.
_SUM_LENGTH = 8192

Cut = Callable[[Any, int, int], Any]
"""``(values, before, after)``: the values without so many at the start and at the end of the axis."""


def sum_cells(values: Any, pieces: Sequence[Piece], cut: Cut, add: Callable[[Any, Any], Any] = add) -> list:
    """Sum over the taps of each cell along one axis, by doubling: a box of 2n taps is two boxes of n.

    Args:
        values (Any): Input of ``cut`` and ``add``: from the position under the first tap for the first output, to the
            position under the last tap for the last one.
        pieces (Sequence[Piece]): Of consecutive cells.
        cut (Callable): See :data:`Cut`.
        add (Callable): Addition of two such values.

    Returns:
        list: For each cell its sums, one for each output.
    """
    first, end = pieces[0].start, pieces[-1].start + pieces[-1].width
    boxes = {1: values}
    for size in _doublings(pieces):
        boxes[2 * size] = _pair_sums(boxes[size], size, cut, add)
    sums: dict[int, Any] = {}
    for cell, start, width in pieces:
        part = cut(boxes[width], start - first, end - start - width)
        sums[cell] = add(sums[cell], part) if cell in sums else part
    return list(sums.values())


def sum_boxes(gather: Callable[[int], Any], pieces: Sequence[Piece], cut: Cut,
              add: Callable[[Any, Any], Any] = add) -> Any:
    """Sum maps of single taps over the taps of their cells along one axis, and over the cells.

    With u_n the sum of the maps of all pieces of n taps, each moved to the piece's first tap, this is
    ``u_1 + B_1(u_2 + B_2(u_4 + ...))``, where ``(B_n v)(x) = v(x) + v(x + n)``.

    Args:
        gather (Callable): ``n -> u_n``, n - 1 positions longer than the output, or None if no piece has n taps.
        pieces (Sequence[Piece]): See :func:`sum_cells`.
        cut (Callable): See :func:`sum_cells`.
        add (Callable): See :func:`sum_cells`.

    Returns:
        Any: The output along the axis.
    """
    sizes = [1, *(2 * size for size in _doublings(pieces))]
    total = gather(sizes.pop())
    for size in reversed(sizes):
        total, gathered = _pair_sums(total, size, cut, add), gather(size)
        total = total if gathered is None else add(gathered, total)
    return total


def _doublings(pieces: Sequence[Piece]) -> list[int]:
    """Return 1, 2, 4, ... below the widest piece."""
    return [1 << level for level in range(max(piece.width for piece in pieces).bit_length() - 1)]


def _pair_sums(values: Any, size: int, cut: Cut, add: Callable[[Any, Any], Any]) -> Any:
    return add(cut(values, 0, size), cut(values, size, 0))


def why_not(x: Tensor, grid: SharingGrid) -> str | None:
    """Return None: the backend runs wherever PyTorch does."""
    return None


def forward(x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W), dtype and strides of ``x``."""
    height, width = x.shape[-2:]
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    rows, cols = (grid.pieces(grid.reachable(size)) for size in (height, width))
    mixing = _reachable(_compute(theta), grid, height, width).transpose(1, 2)
    for n, c, y in _chunks(x, rows, cols):
        sums = _sum_rows(x[n, c], rows, y)
        mixed = torch.matmul(mixing[c], sums.flatten(3)).unflatten(-1, (-1, width))
        total = _sum_columns(mixed, cols)
        if bias is not None:
            total += _compute(bias[c])[:, None, None]
        out[n, c, y] = total.to(out.dtype)
    return out


def theta_grad(x: Tensor, grad_output: Tensor, grid: SharingGrid) -> Tensor:
    """Return the gradient (C, k', k') of the stored kernel, dtype of ``x``."""
    channels, height, width = x.shape[1:]
    out = _compute(x.new_zeros(channels, grid.num_cells, grid.num_cells))
    if x.numel() == 0:
        return out.to(x.dtype)
    rows, cols = (grid.pieces(grid.reachable(size)) for size in (height, width))
    reachable = _reachable(out, grid, height, width)
    for n, c, y in _chunks(x, rows, cols):
        sums = _sum_rows(x[n, c], rows, y).flatten(3)
        # dY(p, q - j) over the taps j of a cell: the row sums of the transposed map over the mirrored cell.
        grads = _sum_rows(grad_output[n, c, y].transpose(-1, -2), cols, slice(0, width)).flip(2)
        grads = grads.transpose(-1, -2).flatten(3)
        for part, grad in zip(sums.split(_SUM_LENGTH, -1), grads.split(_SUM_LENGTH, -1)):
            reachable[c] += torch.matmul(part, grad.transpose(-1, -2)).sum(0)
    return out.to(x.dtype)


def _compute(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _reachable(theta: Tensor, grid: SharingGrid, height: int, width: int) -> Tensor:
    rows, cols = grid.reachable(height), grid.reachable(width)
    return theta[:, rows.start:rows.stop, cols.start:cols.stop]


def _chunks(x: Tensor, rows: Sequence[Piece], cols: Sequence[Piece]) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices of batch, channels and rows whose intermediate results fit the budget."""
    batch, channels, height, width = x.shape
    budget = _CPU_CHUNK_BYTES if x.device.type == 'cpu' else _DEVICE_CHUNK_BYTES
    # Boxes and mixed rows, and the boxes of powers of two with their halo.
    halo = rows[-1].start + rows[-1].width - rows[0].start
    cells = max(axis[-1].cell - axis[0].cell + 1 for axis in (rows, cols))
    row_bytes = 2 * cells * width * max(4, x.element_size())
    step_y = min(height, max(budget // row_bytes, halo // 4, 1))
    planes = max(1, budget // (row_bytes * step_y))
    step_c = min(channels, planes)
    step_n = max(1, planes // channels)
    for n in range(0, batch, step_n):
        for c in range(0, channels, step_c):
            for y in range(0, height, step_y):
                yield slice(n, n + step_n), slice(c, c + step_c), slice(y, min(y + step_y, height))


def _cut_rows(planes: Tensor, before: int, after: int) -> Tensor:
    return planes[..., before:planes.shape[-2] - after, :]


def _cut_columns(planes: Tensor, before: int, after: int) -> Tensor:
    return planes[..., before:planes.shape[-1] - after]


def _sum_rows(planes: Tensor, pieces: Sequence[Piece], rows: slice) -> Tensor:
    """Sum over the taps of each cell, ``r_a(y) = sum_i X(y + i)``: (N, C, H, W) -> (N, C, cells, rows, W)."""
    height = planes.shape[-2]
    low, high = rows.start + pieces[0].start, rows.stop - 1 + pieces[-1].start + pieces[-1].width
    inside = _compute(planes[..., max(low, 0):max(min(high, height), 0), :])
    above = min(max(-low, 0), high - low)
    padded = F.pad(inside, (0, 0, above, high - low - above - inside.shape[-2]))
    sums = sum_cells(padded, pieces, _cut_rows)
    # Contiguous, which torch.stack of channels-last maps is not.
    return torch.stack(sums, 2, out=padded.new_empty(*planes.shape[:2], len(sums), *sums[0].shape[-2:]))


def _sum_columns(mixed: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """``out(x) = sum over cells b and their taps i of t_b(x + i)``: (N, C, cells, H, W) -> (N, C, H, W)."""
    width, first = mixed.shape[-1], pieces[0].cell

    def gather(size: int) -> Tensor:
        total = mixed.new_zeros(*mixed.shape[:2], mixed.shape[3], width + size - 1)
        for cell, start, _ in (piece for piece in pieces if piece.width == size):
            low, high = max(0, -start), min(width + size - 1, width - start)
            if low < high:
                total[..., low:high] += mixed[:, :, cell - first, :, low + start:high + start]
        return total

    return sum_boxes(gather, pieces, _cut_columns)
