"""Extreme but finite values in 16 bits: the operator overflows where the exact result does, and nowhere else.

Of fp16 that is all numbers there are. bf16 has the range of fp32, in which the operator sums: a box of taps overflows
above the largest number over K * K, far beyond any image, so these are tested to 1e30.
"""

import pytest
import torch

from pelk_mm.ops import SharingGrid, peripheral_conv2d

DTYPES = (torch.float16, torch.bfloat16)
BACKENDS = ('native', 'box_sums', 'reference')
GRID = SharingGrid.from_kernel_size(51)
SHAPE = (2, 3, 12, 15)
NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def hot_pixel(value):
    x = torch.zeros(SHAPE)
    x[0, 0, 5, 7] = value
    return x


def checkerboard(value):
    x = torch.full(SHAPE, value)
    x[..., ::2, ::2] *= -1
    return x


EXTREMES = {
    'zeros': lambda largest, smallest: torch.zeros(SHAPE),
    'constant': lambda largest, smallest: torch.full(SHAPE, largest),
    'hot-pixel': lambda largest, smallest: hot_pixel(largest),
    'checkerboard': lambda largest, smallest: checkerboard(largest),
    'huge-mean-tiny-deviation': lambda largest, smallest: largest / 4 * (1 + 1e-2 * NOISE),
    'denormal': lambda largest, smallest: smallest / 8 * NOISE,
    'range-of-images': lambda largest, smallest: 255 * NOISE.sign(),
}


def run(x, theta, grad, backend):
    """Output and gradients, as tensors of float64."""
    x, theta = (tensor.detach().requires_grad_() for tensor in (x, theta))
    y = peripheral_conv2d(x, theta, GRID, backend=backend)
    return y.detach(), *torch.autograd.grad(y, (x, theta), grad.to(y.dtype))


@pytest.mark.parametrize('scale', [1.0, 1 / 51**2], ids=['weights-of-one', 'weights-of-a-mean'])
@pytest.mark.parametrize('kind', EXTREMES)
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_overflows_only_where_the_exact_result_does(dtype, backend, kind, scale):
    info = torch.finfo(dtype)
    x = EXTREMES[kind](min(info.max, 1e30), info.smallest_normal).to(dtype)
    generator = torch.Generator().manual_seed(1)
    theta = (torch.rand(SHAPE[1], GRID.num_cells, GRID.num_cells, generator=generator) * scale).to(dtype)
    grad = torch.randn(SHAPE, generator=generator).to(dtype)
    with torch.autocast('cpu', dtype):
        # Weights of training are fp32, and rounded here.
        results = run(x.float(), theta.float(), grad, backend)
    exact = run(x.double(), theta.double(), grad.double(), 'reference')
    assert results[0].dtype == dtype
    for name, result, expected in zip(('output', 'x', 'theta'), results, exact):
        if (backend, name, dtype) == ('reference', 'theta', torch.float16):
            # It rounds the gradient of the dense kernel to 16 bits before it sums that over the cells.
            continue
        fits = expected.abs() < info.max * (1 - info.eps)
        assert result[fits].isfinite().all(), name
        assert not result.isnan().any(), name
        assert not result[expected.abs() > info.max * (1 + info.eps)].to(dtype).isfinite().any(), name


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_autocast_rounds_what_goes_in_and_nothing_else(dtype, backend):
    """Also where the backward pass runs in autocast; sums inside a backend stay fp32."""
    generator = torch.Generator().manual_seed(2)
    theta = torch.randn(SHAPE[1], GRID.num_cells, GRID.num_cells, generator=generator)
    grad = torch.randn(SHAPE, generator=generator)
    with torch.autocast('cpu', dtype):
        results = run(NOISE, theta, grad, backend)
    expected = run(NOISE.to(dtype), theta.to(dtype), grad.to(dtype), backend)
    for result, value in zip(results, expected):
        assert torch.equal(result.to(dtype), value)
