"""Triton kernels of the peripheral convolution; TRITON.md beside this file derives them and counts their costs.

Rows come in strips of two. Only dtypes, tile sizes, alignment and index width are compiled in: one binary serves
every grid, map, batch and number of channels.

The table of a grid is int32: first tap of each cell (k'), width of each cell (k'), cell of each tap (K).
"""

import triton
import triton.language as tl

# By default Triton compiles again for a stride of 1 and for multiples of 16, and so for many new map sizes.
_RUNTIME = ('x', 'theta', 'bias', 'out', 'grad', 'partial', 'table', 'N', 'C', 'H', 'W', 'x_n', 'x_c', 'x_h', 'grad_n',
            'grad_c', 'grad_h', 'cells', 'size', 'first_cell', 'last_cell', 'mirrored')


@triton.jit
def _row(x, offset, y, row, stride, in_columns, H):
    """Row ``y + row`` of each strip in fp32, zero outside the map; ``offset`` is that of row y # [G, B]."""
    # Rows above the map are negative, so large as unsigned numbers: one comparison serves both sides.
    inside = (y + row).to(tl.uint32, bitcast=True) < H.to(tl.uint32, bitcast=True)
    # The row's offset goes into the pointer, a scalar: a tensor that changes from row to row would be recomputed.
    return tl.load(x + row * stride + offset, mask=in_columns & inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def _cell_sums(x, offset, y, start, width, stride, in_columns, H):
    """Sums of ``width`` rows from ``start`` on, for both rows of every strip # 2 x [G, B].

    The two windows, one row apart, share all rows but one each. Nothing is subtracted, so nothing cancels.
    """
    end = start + width
    first = _row(x, offset, y, start, stride, in_columns, H)
    shared = tl.zeros(offset.shape, tl.float32)
    for row in range(start + 1, end - 3, 4):
        head = _row(x, offset, y, row, stride, in_columns, H) + _row(x, offset, y, row + 1, stride, in_columns, H)
        shared += head + (_row(x, offset, y, row + 2, stride, in_columns, H) +
                          _row(x, offset, y, row + 3, stride, in_columns, H))
    for row in range(end - (width - 1) % 4, end):
        shared += _row(x, offset, y, row, stride, in_columns, H)
    return first + shared, shared + _row(x, offset, y, end, stride, in_columns, H)


@triton.jit
def _high(value):
    """An fp32 number rounded to what TF32 holds; ``value - _high(value)`` is the rest, exact in fp32."""
    bits = value.to(tl.uint32, bitcast=True)
    # The largest numbers would be rounded to infinity; they are cut off.
    bits = tl.where(tl.abs(value) < 3.4e38, bits + 0x1000, bits)
    return (bits & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def _split(right, dtype: tl.constexpr):
    """The right operand of :func:`_multiply` as high and low part; only fp32 has a low one."""
    if dtype == tl.bfloat16:
        return right.to(tl.bfloat16), right
    else:
        high = _high(right)
        return high, right - high


@triton.jit
def _multiply(left, high, low, acc, dtype: tl.constexpr):
    """``acc + left @ right`` on tensor cores at fp32's precision # [M, K] @ [K, N].

    The operands are split into parts that tensor cores multiply exactly: two of TF32 or, with bf16 tensors, of bf16.
    ``left`` is always fp32; ``high`` and ``low`` are from :func:`_split`: fp16 fits TF32 and bf16 fits itself.

    Tensor cores truncate while they accumulate, so long chains drift: each product starts from zero.
    """
    if dtype == tl.bfloat16:
        left_high = left.to(tl.bfloat16)
        left_low = (left - left_high.to(tl.float32)).to(tl.bfloat16)
        product = tl.dot(left_high, high, tl.dot(left_low, high))
    else:
        left_high = _high(left)
        product = tl.dot(left - left_high, high, input_precision='tf32')
        if dtype == tl.float32:
            product = tl.dot(left_high, low, product, input_precision='tf32')
        product = tl.dot(left_high, high, product, input_precision='tf32')
    # Rounded. A plain addition would be folded back into the chain.
    return tl.fma(product, 1.0, acc)


@triton.jit
def _strips(tile, N, H, G: tl.constexpr):
    """Image and first row of each strip of a tile; beyond the last strip, a row outside every map # [G], [G]."""
    strip = tile * G + tl.arange(0, G)
    strips = tl.cdiv(H, 2)
    n = strip // strips
    return n, tl.where(n < N, (strip % strips) * 2, -(1 << 30))


@triton.jit
def _store_row(out, offset, value, y, in_columns, H):
    inside = y.to(tl.uint32, bitcast=True) < H.to(tl.uint32, bitcast=True)
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=in_columns & inside[:, None])


@triton.jit(do_not_specialize=_RUNTIME)
def forward_kernel(x, theta, bias, out, table, N, C, H, W, x_n, x_c, x_h, cells, size, first_cell, last_cell,
                   mirrored, BIAS: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr, G: tl.constexpr,
                   BK: tl.constexpr, BN: tl.constexpr):
    """``out[y, j] = bias + sum_a sum_k r_a[y, k] * theta[a, cell of tap k - j]``, r_a the sums over cell a of rows.

    Grid: (tiles of G strips times tiles of BN columns, C). x has unit stride along W, out (N, C, H, W) is contiguous.
    With ``mirrored`` theta is read from its end.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    # The caller has checked that these are multiples of ALIGN, so the compiler may use loads of that width.
    W = W // ALIGN * ALIGN
    x_n = x_n // ALIGN * ALIGN
    x_c = x_c // ALIGN * ALIGN
    x_h = (x_h // ALIGN * ALIGN).to(INDEX)
    c = tl.program_id(1).to(tl.int64)
    column_tiles = tl.cdiv(W, BN)
    j0 = tl.program_id(0) % column_tiles * BN
    j = j0 + tl.arange(0, BN)
    n, y = _strips(tl.program_id(0) // column_tiles, N, H, G)
    x = tl.multiple_of(x + c * x_c, ALIGN * (dtype.primitive_bitwidth // 8))
    rows = n.to(INDEX) * x_n + y.to(INDEX) * x_h
    theta += c * cells * cells + mirrored * (cells * cells - 1)
    step = 1 - 2 * mirrored
    acc0 = tl.zeros([G, BN], tl.float32)
    acc1 = acc0
    half = size // 2
    for k0 in range(tl.maximum(j0 - half, 0) // BK * BK, tl.minimum(j0 + BN + half, W), BK):
        k = tl.multiple_of(k0, BK) + tl.arange(0, BK)
        tap = k[:, None] - j[None, :] + half  # [BK, BN]
        in_kernel = (tap >= 0) & (tap < size)
        cell = tl.load(table + 2 * cells + tap, mask=in_kernel, other=0)
        offset = rows[:, None] + k[None, :]  # [G, BK]
        in_columns = (k < W)[None, :] & (y >= 0)[:, None]
        for a in range(first_cell, last_cell):
            s0, s1 = _cell_sums(x, offset, y, tl.load(table + a), tl.load(table + cells + a), x_h, in_columns, H)
            weight = tl.load(theta + step * (a * cells + cell), mask=in_kernel, other=0.0).to(tl.float32)
            high, low = _split(weight, dtype)
            acc0 = _multiply(s0, high, low, acc0, dtype)
            acc1 = _multiply(s1, high, low, acc1, dtype)
    if BIAS:
        shift = tl.load(bias + c).to(tl.float32)
        acc0 += shift
        acc1 += shift
    out = tl.multiple_of(out + c * H * W, ALIGN * (dtype.primitive_bitwidth // 8))
    offset = (n.to(INDEX) * C * H + y)[:, None] * W + j[None, :]
    in_columns = (j < W)[None, :] & (y >= 0)[:, None]
    _store_row(out, offset, acc0, y, in_columns, H)
    _store_row(out, offset + W, acc1, y + 1, in_columns, H)


@triton.jit(do_not_specialize=_RUNTIME)
def theta_grad_kernel(x, grad, partial, table, N, C, H, W, x_n, x_c, x_h, grad_n, grad_c, grad_h, cells, size,
                      first_cell, last_cell, ALIGN: tl.constexpr, WIDE: tl.constexpr, G: tl.constexpr,
                      BK: tl.constexpr, BN: tl.constexpr, MAX_CELLS: tl.constexpr):
    """``partial[s, c, a, b]`` = the share of split s in ``sum_{n, y, k, j} r_a[y, k] * grad[y, j]``, tap k - j in b.

    Grid: (used cells times tiles of BN columns, C, splits of the strips). The shares of all splits and column tiles
    are summed afterwards, in a fixed order. x and grad have unit stride along W.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    W = W // ALIGN * ALIGN
    x_n = x_n // ALIGN * ALIGN
    x_c = x_c // ALIGN * ALIGN
    x_h = (x_h // ALIGN * ALIGN).to(INDEX)
    grad_n = grad_n // ALIGN * ALIGN
    grad_c = grad_c // ALIGN * ALIGN
    grad_h = (grad_h // ALIGN * ALIGN).to(INDEX)
    c = tl.program_id(1).to(tl.int64)
    used_cells = last_cell - first_cell
    a = first_cell + tl.program_id(0) % used_cells
    column_tile = tl.program_id(0) // used_cells
    j0 = column_tile * BN
    j = j0 + tl.arange(0, BN)
    x = tl.multiple_of(x + c * x_c, ALIGN * (dtype.primitive_bitwidth // 8))
    grad = tl.multiple_of(grad + c * grad_c, ALIGN * (dtype.primitive_bitwidth // 8))
    start = tl.load(table + a)
    width = tl.load(table + cells + a)
    bs = tl.arange(0, MAX_CELLS)
    total = tl.zeros([MAX_CELLS], tl.float32)
    half = size // 2
    tiles = tl.cdiv(N * tl.cdiv(H, 2), G)
    for k0 in range(tl.maximum(j0 - half, 0) // BK * BK, tl.minimum(j0 + BN + half, W), BK):
        k = tl.multiple_of(k0, BK) + tl.arange(0, BK)
        acc = tl.zeros([BK, BN], tl.float32)
        for tile in range(tl.program_id(2), tiles, tl.num_programs(2)):
            n, y = _strips(tile, N, H, G)
            in_map = (y >= 0)[:, None]
            offset = (n.to(INDEX) * x_n + y.to(INDEX) * x_h)[:, None] + k[None, :]
            s0, s1 = _cell_sums(x, offset, y, start, width, x_h, (k < W)[None, :] & in_map, H)
            offset = (n.to(INDEX) * grad_n + y.to(INDEX) * grad_h)[:, None] + j[None, :]
            in_columns = (j < W)[None, :] & in_map
            high, low = _split(_row(grad, offset, y, 0, grad_h, in_columns, H), dtype)
            acc = _multiply(tl.trans(s0), high, low, acc, dtype)
            high, low = _split(_row(grad, offset, y, 1, grad_h, in_columns, H), dtype)
            acc = _multiply(tl.trans(s1), high, low, acc, dtype)
        tap = k[:, None] - j[None, :] + half  # [BK, BN]
        in_kernel = (tap >= 0) & (tap < size)
        cell = tl.load(table + 2 * cells + tap, mask=in_kernel, other=-1)
        for b in range(cells):
            total += tl.where(bs == b, tl.sum(tl.where(cell == b, acc, 0.0)), 0.0)
    share = (tl.program_id(2) + tl.num_programs(2) * column_tile) * C + c
    tl.store(partial + (share * cells + a) * cells + bs, total, mask=bs < cells)


INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` when Triton was imported), on any device."""
