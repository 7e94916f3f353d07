"""The Triton backend's host side: supported input, tile sizes, launches. TRITON.md derives the method."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid

# Cells of a row that the theta_grad kernel keeps in registers, and the device's limit of a launch's second axis.
MAX_CELLS = 64
_MAX_CHANNELS = 65535
# Below this many programs of the large tiles, smaller ones keep more of a device busy.
_FEW_PROGRAMS = 264
# The theta_grad kernel splits the rows until there are about this many programs. It must not depend on the device, as
# the order of summation does.
_THETA_GRAD_PROGRAMS = 2048


class Tile(NamedTuple):
    """Tile sizes of a kernel: G strips of two rows, BK input and BN output columns, and the warps that share them."""

    G: int
    BK: int
    BN: int
    warps: int


# By the widest map that they are for; the last is for all wider ones too.
FORWARD_TILES = {16: Tile(64, 16, 16, 4), 32: Tile(64, 16, 32, 4), 64: Tile(64, 32, 64, 4)}
SMALL_FORWARD_TILES = {16: Tile(16, 16, 16, 2), 32: Tile(16, 32, 32, 4), 64: Tile(16, 32, 64, 4)}
THETA_GRAD_TILES = {16: Tile(32, 16, 16, 2), 32: Tile(32, 32, 32, 4), 64: Tile(32, 64, 64, 4)}


def why_not(x: Tensor, grid: SharingGrid) -> str | None:
    """Return why the kernels cannot run on x (N, C, H, W) with this grid, or None if they can."""
    if find_spec('triton') is None:
        return 'triton is not installed'
    if x.dtype == torch.float64:
        return 'float64 is not supported: the kernels accumulate in float32'
    if x.device.type != 'cuda':
        if os.environ.get('TRITON_INTERPRET') != '1' or not _kernels().INTERPRETED:
            return f'x is on {x.device.type}: needs a CUDA device'
    elif torch.version.hip is not None:
        return 'AMD GPUs are not supported: the kernels need TF32'
    elif torch.cuda.get_device_capability(x.device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(x.device)
        return f'needs a GPU of compute capability 8.0 or newer (TF32 and bfloat16), got {major}.{minor}'
    if grid.num_cells > MAX_CELLS:
        return f'the grid has {grid.num_cells} cells a side, at most {MAX_CELLS} are supported'
    if x.shape[1] > _MAX_CHANNELS:
        return f'x has {x.shape[1]} channels, at most {_MAX_CHANNELS} are supported'
    return None


def forward(x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid, mirrored: bool = False) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W), contiguous, dtype of x. Input without unit stride along W is copied first.

    ``mirrored`` flips theta in both axes, as the gradient of x needs it.
    """
    batch, channels, height, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x = _with_unit_stride(x)
    align = _alignment(out, x)
    tile, programs = _forward_tile(batch, channels, height, width, align)
    cells = grid.reachable(height)
    with torch.cuda.device_of(x):
        _kernels().forward_kernel[programs](
            x, theta.contiguous(), out if bias is None else bias.contiguous(), out, _table(grid, x.device),
            batch, channels, height, width, *x.stride()[:3], grid.num_cells, grid.kernel_size, cells.start, cells.stop,
            int(mirrored), BIAS=bias is not None, ALIGN=align, WIDE=_is_wide(x) or _is_wide(out), G=tile.G, BK=tile.BK,
            BN=tile.BN, num_warps=tile.warps)  # yapf: disable
    return out


def theta_grad(x: Tensor, grad_output: Tensor, grid: SharingGrid) -> Tensor:
    """Return the gradient (C, k', k') of the stored kernel, the same bits every time: sums have a fixed order."""
    batch, channels, height, width = x.shape
    cells = grid.num_cells
    if x.numel() == 0:
        return x.new_zeros(channels, cells, cells)
    x, grad_output = _with_unit_stride(x), _with_unit_stride(grad_output)
    tile, programs = _theta_grad_tile(batch, channels, height, width, grid)
    tasks, _, splits = programs
    used = grid.reachable(height)
    shares = splits * (tasks // len(used))
    partial = torch.zeros(shares, channels, cells, cells, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _kernels().theta_grad_kernel[programs](
            x, grad_output, partial, _table(grid, x.device), batch, channels, height, width, *x.stride()[:3],
            *grad_output.stride()[:3], cells, grid.kernel_size, used.start, used.stop,
            ALIGN=_alignment(x, grad_output), WIDE=_is_wide(x) or _is_wide(grad_output), G=tile.G, BK=tile.BK,
            BN=tile.BN, MAX_CELLS=MAX_CELLS, num_warps=tile.warps)  # yapf: disable
    return partial.sum(0).to(x.dtype)


def _forward_tile(batch: int, channels: int, height: int, width: int,
                  align: int) -> tuple[Tile, tuple[int, int]]:
    """Return tile sizes for the map's width, and the launch grid: tiles of columns fastest, they read the same rows."""
    strips = batch * -(-height // 2)
    for tiles in (FORWARD_TILES, SMALL_FORWARD_TILES):
        tile = fit_registers(_for_width(tiles, width), align)
        programs = (-(-strips // tile.G) * -(-width // tile.BN), channels)
        if programs[0] * programs[1] >= _FEW_PROGRAMS:
            break
    return tile, programs


def fit_registers(tile: Tile, align: int) -> Tile:
    """Return the tile to use instead of ``tile`` for rows with a smaller alignment."""
    # One pointer per element instead of one per four: the largest tile would not fit the registers.
    return tile._replace(BK=16) if align < 4 and tile == FORWARD_TILES[64] else tile


def _theta_grad_tile(batch: int, channels: int, height: int, width: int,
                     grid: SharingGrid) -> tuple[Tile, tuple[int, int, int]]:
    """Return tile sizes, and the launch grid: cells times tiles of columns fastest, as they read the same rows."""
    tile = _for_width(THETA_GRAD_TILES, width)
    tasks = len(grid.reachable(height)) * -(-width // tile.BN)
    row_tiles = -(-batch * -(-height // 2) // tile.G)
    splits = max(1, min(row_tiles, _THETA_GRAD_PROGRAMS // (channels * tasks)))
    return tile, (tasks, channels, splits)


def _for_width(tiles: dict[int, Tile], width: int) -> Tile:
    return next((tile for limit, tile in tiles.items() if width <= limit), tiles[max(tiles)])


def _with_unit_stride(x: Tensor) -> Tensor:
    """Return x, copied unless neighbours along W are neighbours in memory."""
    return x if x.stride(3) == 1 else x.contiguous()


def _alignment(*tensors: Tensor) -> int:
    """Return the largest of 4, 2 and 1 such that every row of every plane starts and ends at a multiple of it."""
    for align in (4, 2):
        if all(tensor.data_ptr() % (align * tensor.element_size()) == 0 and all(
                number % align == 0 for number in (tensor.shape[3], *tensor.stride()[:3])) for tensor in tensors):
            return align
    return 1


def _is_wide(x: Tensor) -> bool:
    """Return whether offsets within one channel of the batch need 64 bits."""
    return sum((size - 1) * stride for size, stride in zip(x.shape, x.stride())) >= 2**31


@cache
def _kernels():
    from . import kernels_triton
    return kernels_triton


@cache
def _table(grid: SharingGrid, device: torch.device) -> Tensor:
    """Return the grid as the kernels read it, int32: first tap of each cell, width of each cell, cell of each tap.

    Made at the first call and kept, in a thread and a stream of its own: PyTorch's modes and the private memory of
    a CUDA graph belong to a thread, a capture to its streams, and none of them may own what later calls read.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_make_table, grid, device).result()


def _make_table(grid: SharingGrid, device: torch.device) -> Tensor:
    table = torch.tensor((*grid.starts, *grid.widths, *grid.cells), dtype=torch.int32)
    if device.type != 'cuda':
        return table.to(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        # Waits for the copy.
        return table.to(device)
