"""The choice of the kernel for a call, the constants that are compiled into it, and ``plan.h`` filled in.

Compiled in are dtype, parts, the number of 8-column chunks, the reach of theta's blocks and the distinct widths of
cells. Height, width, batch, strides and the grid's rows are parameters, so a new image size rarely compiles anything.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...sharing_grid import SharingGrid

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_SIDE = 64
# Sides of maps that forward_planes takes.
MAX_PLANE_SIDE = 16
MAX_CELLS = 64
MAX_WIDTH = 64
_IMAGES = 64
_ROW_BYTES = 16
_BLOCK_BYTES = 128
_WGMMA_ROWS = 64
# Blocks of the gradient of theta. Not from the device, as the order of summation depends on it.
_THETA_GRAD_BLOCKS = 528


class Strided(ctypes.Structure):
    """``struct Tensor`` of plan.h."""

    _fields_ = (('data', ctypes.c_void_p), ('n', ctypes.c_longlong), ('c', ctypes.c_longlong), ('h', ctypes.c_longlong),
                ('paired', ctypes.c_int))


class Plan(ctypes.Structure):
    """``struct Plan`` of plan.h."""

    _fields_ = (*((name, ctypes.c_int) for name in ('N', 'C', 'H', 'W', 'cells', 'reach', 'planes', 'segments', 'lead',
                                                    'chunk', 'plane', 'part', 'group', 'table', 'scratch', 'used')),
                ('map_row', ctypes.c_int * 8), *((name, ctypes.c_int * MAX_CELLS)
                                                 for name in ('cell_row', 'theta_row', 'first_y', 'end_y')),
                ('cell_of', ctypes.c_ubyte * 128))


class Variant(NamedTuple):
    """A kernel with what is compiled into it: names and values of macros."""

    kernel: str
    macros: tuple[tuple[str, str], ...]


class Launch(NamedTuple):
    """A variant and how it is launched; ``blocks`` is None where as many are started as the device holds at a time."""

    variant: Variant
    blocks: tuple[int, int] | None
    threads: int
    shared: int
    plan: Plan
    # Blocks that have work.
    units: int

    @property
    def core(self) -> str:
        """The instruction that multiplies."""
        return 'wgmma' if ('WGMMA', '1') in self.variant.macros else 'mma.sync'


class Shape(NamedTuple):
    """The properties of a launch: sizes, dtype, number of fp16 parts of a number, and the device's.

    These are the bytes of shared memory that a block may have, and whether there is wgmma.
    """

    batch: int
    channels: int
    height: int
    width: int
    dtype: torch.dtype
    parts: int
    shared_limit: int
    wgmma: bool = False


class _Maps(NamedTuple):
    """The places of the box maps in a chunk; numbers of rows."""

    widths: tuple[int, ...]
    segment: int
    segments: int
    lead: int
    pitch: int
    map_row: dict[int, int]


def strided(tensor: Tensor) -> Strided:
    """Describe a tensor (N, C, H, W) of unit stride along W."""
    paired = all(number % 2 == 0 for number in (tensor.shape[3], *tensor.stride()[:3]))
    paired &= tensor.data_ptr() % (2 * tensor.element_size()) == 0
    return Strided(tensor.data_ptr(), *tensor.stride()[:3], paired)


def why_not(grid: SharingGrid, height: int, width: int) -> str | None:
    """Return why no kernel serves maps of this size with this grid, or None; shared memory is not considered."""
    if max(height, width) > MAX_SIDE:
        return f'maps of at most {MAX_SIDE}x{MAX_SIDE} are supported, got {height}x{width}'
    cells = grid.reachable(height)
    if len(cells) > MAX_CELLS or grid.num_cells > 255:
        return f'{len(cells)} row cells of {grid.num_cells} reach the map, at most {MAX_CELLS} of 255 are supported'
    widest = max(grid.widths[cell] for cell in cells)
    if widest > MAX_WIDTH:
        return f'a cell is {widest} taps wide, at most {MAX_WIDTH} are supported'
    if len({grid.widths[cell] for cell in cells}) > 8:
        return 'cells of more than 8 different widths reach the map'
    return None


@lru_cache(maxsize=1024)
def plan_forward(grid: SharingGrid, shape: Shape) -> Launch | None:
    """Return the launch of the forward, or None if it needs more shared memory than a block may have."""
    if max(shape.height, shape.width) <= MAX_PLANE_SIDE:
        return _plan_planes(grid, shape)
    if shape.wgmma and _wgmma_pays(grid, shape):
        launch = _plan_maps(grid, shape, wgmma=True)
        if launch is not None:
            return launch
    return _plan_maps(grid, shape, wgmma=False)


def _plan_maps(grid: SharingGrid, shape: Shape, wgmma: bool) -> Launch | None:
    maps = _lay_out_maps(grid, shape.height)
    macros = _macros(grid, shape, maps)
    cells = len(grid.reachable(shape.height))
    if wgmma:
        # All blocks of a cell are there, and a cell of zeros if the last one has no partner for its odd chunk.
        macros['DM'] = macros['KC'] - 1
        cells += cells % 2 * (macros['KC'] % 2)
    threads = 128 * _most_groups(shape.parts, maps.widths[0])
    table_bytes = cells * (2 * macros['DM'] + 1) * _BLOCK_BYTES * shape.parts
    for planes, groups in _plane_sets(shape.height, threads // 128):
        plan = _plan(grid, shape, maps, planes)
        if wgmma:
            # Rows beyond the map are multiplied too, and their sums dropped.
            plan.group += (_WGMMA_ROWS - shape.height) * _ROW_BYTES
        plan.table = groups * plan.group
        plan.scratch = plan.table + table_bytes
        shared = plan.scratch + 64 + groups * planes * 8
        if shared <= shape.shared_limit:
            variant = Variant('forward_maps', _strings(macros, THREADS=threads, WGMMA=int(wgmma)))
            return Launch(variant, None, 128 * groups, shared, plan, shape.channels * -(-shape.batch // planes))
    return None


def _wgmma_pays(grid: SharingGrid, shape: Shape) -> bool:
    """Return whether wgmma is faster than mma.sync at 62 % of its rate, which skips blocks of zeros and unused rows."""
    if min(shape.height, shape.width) <= MAX_SIDE // 2:
        return False
    chunks = -(-shape.width // 8)
    most = _furthest_block(grid, chunks)
    blocks = sum(abs(k - j) <= most for k in range(chunks) for j in range(chunks))
    return 0.62 * _WGMMA_ROWS * chunks**2 < -(-shape.height // 16) * 16 * blocks


def _plan_planes(grid: SharingGrid, shape: Shape) -> Launch | None:
    chunks, half = -(-shape.width // 8), (shape.height + 1) // 2
    plan = _plan(grid, shape)
    left_chunks = -(-shape.height * chunks // 2) * 2
    plan.part = left_chunks * (_IMAGES + 1) * _ROW_BYTES
    plan.table = plan.part * shape.parts
    plan.scratch = plan.table + (4 * half - 1) * (2 * chunks - 1) * _BLOCK_BYTES * shape.parts
    shared = plan.scratch + 64 + _IMAGES * 4
    macros = dict(DTYPE=DTYPES[shape.dtype], PARTS=shape.parts, KC=chunks, HALF=half)
    if shared > shape.shared_limit:
        return None
    variant = Variant('forward_planes', _strings(macros))
    return Launch(variant, None, 128, shared, plan, shape.channels * -(-shape.batch // _IMAGES))


@lru_cache(maxsize=1024)
def plan_theta_grad(grid: SharingGrid, shape: Shape) -> Launch | None:
    """Return the launch of theta's gradient, or None; blocks: channels * cell shares, and shares of the images."""
    maps = _lay_out_maps(grid, shape.height)
    macros = _macros(grid, shape, maps)
    used = len(grid.reachable(shape.height))
    # Two cells' sums fit the registers if theta's blocks do not reach far.
    cells_of_warp = 1 if used <= 8 or macros['DM'] > 4 else 2
    cell_shares = -(-used // (8 * cells_of_warp))
    for planes, _ in _plane_sets(shape.height, 1):
        plan = _plan(grid, shape, maps, planes)
        rows = -(-planes * shape.height // 16) * 16
        plan.table = plan.group
        plan.scratch = plan.table + shape.parts * macros['KC'] * (rows + 1) * _ROW_BYTES
        shared = plan.scratch + 64
        if shared <= shape.shared_limit:
            across = shape.channels * cell_shares
            splits = max(1, min(-(-shape.batch // planes), _THETA_GRAD_BLOCKS // across))
            variant = Variant('theta_grad', _strings(macros, CELLS=cells_of_warp))
            return Launch(variant, (across, splits), 256, shared, plan, splits * across)
    return None


def _most_groups(parts: int, widest: int) -> int:
    """Return the groups of 128 threads for which the registers of a multiprocessor suffice."""
    if parts == 2:
        return 2
    return 4 if widest <= 8 else 3 if widest <= 17 else 2


def _strings(macros: dict, **more) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in {**macros, **more}.items())


def _macros(grid: SharingGrid, shape: Shape, maps: _Maps) -> dict:
    chunks = -(-shape.width // 8)
    return dict(
        DTYPE=DTYPES[shape.dtype],
        PARTS=shape.parts,
        KC=chunks,
        DM=_furthest_block(grid, chunks),
        WIDTHS=','.join(map(str, maps.widths)),
        SEGMENT=maps.segment)


def _furthest_block(grid: SharingGrid, chunks: int) -> int:
    """Return the largest distance of two chunks that a kernel connects."""
    return min(chunks - 1, (grid.kernel_size // 2 + 7) // 8)


def _plane_sets(height: int, most_groups: int) -> Iterator[tuple[int, int]]:
    """Yield planes a set and groups a block from the preferred ones on: full tiles of rows, then more groups."""
    most = max(1, MAX_SIDE // height) if height <= MAX_SIDE // 2 else 1
    for fewest in dict.fromkeys((min(2, most_groups), 1)):
        for planes in range(most, 0, -1):
            for groups in range(most_groups, fewest - 1, -1):
                yield planes, groups


def _lay_out_maps(grid: SharingGrid, height: int) -> _Maps:
    """Lay the maps of a chunk under each other. Between them are the zero rows that cells read and threads write."""
    cells = grid.reachable(height)
    widths = tuple(sorted({grid.widths[cell] for cell in cells}, reverse=True))
    starts = {width: [grid.starts[cell] for cell in cells if grid.widths[cell] == width] for width in widths}
    rows = height + widths[0] - 1
    # Rows that a thread makes at a time, and the rows that they are sums of, are in registers.
    segment = 16 if widths[0] <= 9 else 12 if widths[0] <= 17 else 8
    segments = -(-rows // segment)
    if segments * (segment - 4) >= rows:
        segment -= 4
    beyond = segments * segment - rows
    above = {width: max(0, -min(starts[width]) - (width - 1)) for width in widths}
    below = {width: max(0, *starts[width], beyond) for width in widths}
    lead = position = above[widths[0]]
    map_row = {}
    for number, width in enumerate(widths):
        if number:
            # Threads write every map from row 1 - widths[0] to the last of their segments.
            position += max(below[widths[number - 1]], above[width], beyond + widths[0] - width)
        map_row[width] = position + width - 1 - lead
        position += height + width - 1
    pitch = position - lead + max(below[widths[-1]], lead)
    # Neighbouring chunks start in different banks.
    pitch += (1 - pitch) % 8
    return _Maps(widths, segment, segments, lead, pitch, map_row)


def _plan(grid: SharingGrid, shape: Shape, maps: _Maps | None = None, planes: int = 1) -> Plan:
    reach = min(grid.kernel_size // 2, MAX_SIDE - 1)
    middle = grid.kernel_size // 2
    plan = Plan(N=shape.batch, C=shape.channels, H=shape.height, W=shape.width, cells=grid.num_cells, reach=reach)
    for tap in range(-reach, reach + 1):
        plan.cell_of[tap + reach] = grid.cells[tap + middle]
    if maps is None:
        return plan
    chunks = -(-shape.width // 8)
    plan.planes, plan.segments = planes, maps.segments
    plan.lead = maps.lead * _ROW_BYTES
    plan.chunk = maps.pitch * _ROW_BYTES
    plan.plane = plan.chunk * chunks
    plan.part = plan.plane * planes
    plan.group = plan.lead + plan.part * shape.parts
    for slot, width in enumerate(maps.widths):
        plan.map_row[slot] = maps.map_row[width] * _ROW_BYTES
    rows = {cell: maps.map_row[grid.widths[cell]] + grid.starts[cell] for cell in grid.reachable(shape.height)}
    plan.used = len(rows)
    # In the order of their rows: wgmma reads two cells at a time, at a distance that is not negative.
    for number, cell in enumerate(sorted(rows, key=rows.__getitem__)):
        start, width = grid.starts[cell], grid.widths[cell]
        plan.cell_row[number] = rows[cell] * _ROW_BYTES
        plan.theta_row[number] = cell
        plan.first_y[number] = 1 - start - width
        plan.end_y[number] = shape.height - start
    # The partner of an odd one.
    plan.cell_row[min(plan.used, MAX_CELLS - 1)] = plan.cell_row[plan.used - 1]
    return plan
