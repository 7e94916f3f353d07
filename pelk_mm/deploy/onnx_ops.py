"""The peripheral convolution in ONNX's own operations, as PyTorch's exporter looks it up. Needs onnxscript."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from ..install_hints import require
from ..ops import SharingGrid

# Slices end there where they end with the axis.
_TO_THE_END = torch.iinfo(torch.int64).max


def translations() -> dict[Callable, Callable]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``.

    Raises:
        ImportError: If onnxscript is missing.
    """
    return {torch.ops.pelk_mm.peripheral_conv2d.default: _peripheral_conv2d()}


def _peripheral_conv2d() -> Callable:
    require('onnxscript', by='export to ONNX')
    from onnxscript import INT64
    from onnxscript import opset20 as op

    def ints(*numbers: int) -> INT64:
        # By its type, a constant may be anything.
        return cast(INT64, op.Constant(value_ints=numbers))

    def cut(value, axes: list[int], starts: list[int], ends: list[int]):
        return op.Slice(value, ints(*starts), ints(*ends), ints(*axes))

    def box_pairs(value, axis: int, size: int):
        """Sums over ``2 * size`` from those over ``size``."""
        return op.Add(cut(value, [axis], [0], [-size]), cut(value, [axis], [size], [_TO_THE_END]))

    def peripheral_conv2d(x, theta, bias, half: Sequence[int], backend: str) -> Any:
        """Sums over the cells' rows, a matrix product with theta, sums over the cells' columns.

        The algorithm of the backend ``boxes`` with offsets from the sides, so that it fits maps of any size.
        """
        grid = SharingGrid(tuple(half))
        radius, pieces = grid.kernel_size // 2, _pieces(grid)
        largest = max(pieces)

        def end(first: int, size: int) -> int:
            """Where a slice of an output's length ends that starts with the tap ``first``, from the side's end."""
            return first - (2 * radius + 1 - size) or _TO_THE_END

        def pad(value, axis: int):
            pads = [0] * 10
            pads[axis] = pads[axis + 5] = radius
            return op.Pad(value, ints(*pads))

        # Rows: (N, C, 1, H + 2 radius, W) -> (N, C, k', H, W).
        box, size = pad(op.Unsqueeze(x, ints(2)), 3), 1
        rows: dict[int, Any] = {}
        while True:
            for cell, first in pieces.get(size, ()):
                part = cut(box, [3], [first], [end(first, size)])
                rows[cell] = op.Add(rows[cell], part) if cell in rows else part
            if size == largest:
                break
            box, size = box_pairs(box, 3, size), 2 * size
        stacked = op.Concat(*(rows[cell] for cell in range(grid.num_cells)), axis=2)
        mixed = op.MatMul(
            op.Transpose(theta, perm=[0, 2, 1]), op.Reshape(stacked, ints(0, 0, 0, -1)))
        # Columns: (N, C, k', H, W + 2 radius) -> (N, C, 1, H, W), the largest boxes first.
        mixed = pad(op.Reshape(mixed, op.Shape(stacked)), 4)
        total: Any = None
        while True:
            for cell, first in pieces.get(size, ()):
                part = cut(mixed, [2, 4], [cell, first], [cell + 1, end(first, size)])
                total = part if total is None else op.Add(total, part)
            if size == 1:
                break
            size //= 2
            total = box_pairs(total, 4, size)
        out = op.Squeeze(total, ints(2))
        return out if bias is None else op.Add(out, op.Reshape(bias, ints(-1, 1, 1)))

    return peripheral_conv2d


def _pieces(grid: SharingGrid) -> dict[int, list[tuple[int, int]]]:
    """Every cell cut into boxes of powers of two: by size, the cell and its first tap, counted from the border."""
    pieces = defaultdict(list)
    for cell, (start, width) in enumerate(zip(grid.starts, grid.widths)):
        first = start + grid.kernel_size // 2
        for level in reversed(range(width.bit_length())):
            if width >> level & 1:
                pieces[1 << level].append((cell, first))
                first += 1 << level
    return dict(pieces)
