"""The peripheral convolution in ONNX's own operations, as PyTorch's exporter looks it up. Needs onnxscript."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, cast

import torch

from ..install_hints import require
from ..ops import SharingGrid
from ..ops.peripheral_conv2d.box_sums import Cut, sum_boxes, sum_cells

# Names of their nodes begin so.
BOX_SUMS = 'peripheral_conv2d_'
# Slices end there where they end with the axis.
_TO_THE_END = torch.iinfo(torch.int64).max


def translations() -> dict[Callable, Callable]:
    """Return the table for ``torch.onnx.export(custom_translation_table=...)``.

    Raises:
        ImportError: If onnxscript is missing.
    """
    return {torch.ops.pelk_mm.peripheral_conv2d.default: _peripheral_conv2d()}


def _peripheral_conv2d() -> Callable:
    require('onnxscript', by='export to ONNX')
    from onnxscript import INT64
    from onnxscript import opset20 as op

    def ints(*numbers: int) -> INT64:
        # The declared type of a constant is a union of all.
        return cast(INT64, op.Constant(value_ints=numbers))

    def pad(value, axis: int, count: int):
        pads = [0] * 10
        pads[axis] = pads[axis + 5] = count
        return op.Pad(value, ints(*pads))

    def cut_along(axis: int) -> Cut:
        return lambda value, before, after: op.Slice(value, ints(before), ints(-after or _TO_THE_END), ints(axis))

    def peripheral_conv2d(x, theta, bias, half: Sequence[int], backend: str) -> Any:
        """Make the backend ``box_sums`` of ONNX's operations, with offsets from the sides: it fits maps of any size."""
        grid = SharingGrid(tuple(half))
        radius, pieces = grid.kernel_size // 2, grid.pieces()
        # Rows: (N, C, 1, H + 2 radius, W) -> (N, C, k', H, W).
        rows = sum_cells(pad(op.Unsqueeze(x, ints(2)), 3, radius), pieces, cut_along(3), op.Add)
        stacked = op.Concat(*rows, axis=2)
        mixed = op.MatMul(op.Transpose(theta, perm=[0, 2, 1]), op.Reshape(stacked, ints(0, 0, 0, -1)))
        # Columns: (N, C, k', H, W + 2 radius) -> (N, C, 1, H, W).
        mixed = pad(op.Reshape(mixed, op.Shape(stacked)), 4, radius)

        def gather(size: int) -> Any:
            parts = [
                op.Slice(mixed, ints(cell, radius + start), ints(cell + 1, -(radius + 1 - start - size) or _TO_THE_END),
                         ints(2, 4)) for cell, start, width in pieces if width == size
            ]
            return reduce(op.Add, parts) if parts else None

        out = op.Squeeze(sum_boxes(gather, pieces, cut_along(4), op.Add), ints(2))
        return out if bias is None else op.Add(out, op.Reshape(bias, ints(-1, 1, 1)))

    return peripheral_conv2d
