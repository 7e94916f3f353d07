"""Triton kernel of :func:`pelk_mm.ops.concat_layer_norm.concat_layer_norm`."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=('plane', 'tiles', 'a_n', 'b_n'))
def concat_layer_norm_kernel(a, b, weight, bias, out, plane, tiles, A, B, a_n, a_c, a_p, b_n, b_c, b_p, eps,
                             WEIGHT: tl.constexpr, BIAS: tl.constexpr, BP: tl.constexpr, BA: tl.constexpr,
                             BB: tl.constexpr):  # yapf: disable
    """LayerNorm of BP pixels over the A channels of ``a`` and the B channels of ``b``; ``out`` is channels-last.

    ``plane`` is H * W, and ``tiles`` the programs of an image.
    """
    image = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = (tl.program_id(0) % tiles * BP + tl.arange(0, BP))[:, None]
    # [BP, BA] and [BP, BB]: one tile each, as the sum of both channel counts would rarely be near a power of two.
    in_a, in_b = tl.arange(0, BA)[None, :], tl.arange(0, BB)[None, :]
    is_a, is_b = (pixel < plane) & (in_a < A), (pixel < plane) & (in_b < B)
    first = tl.load(a + image * a_n + pixel * a_p + in_a * a_c, mask=is_a, other=0.0).to(tl.float32)
    second = tl.load(b + image * b_n + pixel * b_p + in_b * b_c, mask=is_b, other=0.0).to(tl.float32)
    mean = ((tl.sum(first, 1) + tl.sum(second, 1)) / (A + B))[:, None]
    # Of the deviations: the difference of large sums would lose them.
    first, second = tl.where(is_a, first - mean, 0.0), tl.where(is_b, second - mean, 0.0)
    variance = ((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (A + B))[:, None]
    scale = 1.0 / tl.sqrt(variance + eps)
    first, second = first * scale, second * scale
    if WEIGHT:
        first *= tl.load(weight + in_a, mask=in_a < A, other=0.0).to(tl.float32)
        second *= tl.load(weight + A + in_b, mask=in_b < B, other=0.0).to(tl.float32)
    if BIAS:
        first += tl.load(bias + in_a, mask=in_a < A, other=0.0).to(tl.float32)
        second += tl.load(bias + A + in_b, mask=in_b < B, other=0.0).to(tl.float32)
    row = out + image * plane * (A + B) + pixel * (A + B)
    tl.store(row + in_a, first.to(out.dtype.element_ty), mask=is_a)
    tl.store(row + A + in_b, second.to(out.dtype.element_ty), mask=is_b)
