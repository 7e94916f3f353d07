"""A depthwise convolution becomes a peripheral one that computes the same; GRN."""

import re

import pytest
import torch
from torch import nn

from pelk_mm.layers import GRN, PeripheralConv2d
from pelk_mm.ops import SharingGrid


def depthwise(side, **kwargs):
    return nn.Conv2d(6, 6, side, **{'padding': (side // 2, side // 2), 'groups': 6, **kwargs})


@pytest.mark.parametrize('side, kernel_size, kwargs, half', [
    (7, 51, {}, (8, 8, 4, 2, 1, 1, 1, 1)),
    (7, 51, dict(base=3), (10, 9, 3, 1, 1, 1, 1)),
    (3, 51, {}, (9, 8, 4, 2, 1, 1, 1)),
    (3, 13, dict(center=3), (3, 2, 1, 1)),
    (9, 13, dict(center=3), (2, 1, 1, 1, 1, 1)),
    (3, 3, {}, (1, 1)),
    (1, 5, dict(center=1), (2, 1)),
    (5, [4, 2, 1, 1, 1], {}, (4, 2, 1, 1, 1)),
    (5, SharingGrid.from_kernel_size(33, 7), {}, (7, 4, 2, 1, 1, 1, 1)),
], ids=str)
@pytest.mark.parametrize('kind', [{}, dict(bias=False), dict(padding='same'), dict(dtype=torch.float64)], ids=str)
@torch.no_grad()
def test_it_computes_the_same(side, kernel_size, kwargs, half, kind):
    conv = depthwise(side, **kind)
    large = PeripheralConv2d.from_conv(conv, kernel_size, **kwargs)
    assert large.grid.half == half
    x = torch.rand(2, 6, 23, 31, dtype=conv.weight.dtype)
    torch.testing.assert_close(large(x), conv(x), rtol=1e-5, atol=1e-6)
    assert large.weight.dtype == conv.weight.dtype
    assert (large.bias is None) == (conv.bias is None)
    assert int((large.weight != 0).sum()) == conv.weight.numel()


def test_it_is_a_copy_that_trains_as_the_convolution_does():
    conv = depthwise(7).eval().requires_grad_(False)
    large = PeripheralConv2d.from_conv(conv, 31, backend='box_sums')
    assert not large.training
    assert not any(parameter.requires_grad for parameter in large.parameters())
    assert large.backend == 'box_sums'
    with torch.no_grad():
        large.weight.add_(1)
        large.bias.add_(1)
    assert conv.weight.max() < 1
    assert conv.bias.max() < 1
    trained = PeripheralConv2d.from_conv(depthwise(7), 31)
    trained(torch.rand(1, 6, 40, 40)).square().sum().backward()
    assert (trained.weight.grad != 0).all()


@pytest.mark.parametrize('conv, reason', [
    (depthwise(7, stride=2), 'its stride must be 1, got (2, 2)'),
    (depthwise(7, dilation=2), 'its dilation must be 1, got (2, 2)'),
    (depthwise(7, padding=(2, 2)), "its padding must be 'same', (3, 3), got (2, 2)"),
    (depthwise(7, padding='valid'), "its padding must be 'same', (3, 3), got 'valid'"),
    (depthwise(7, padding_mode='reflect'), "its padding_mode must be 'zeros', got 'reflect'"),
    (depthwise(6), 'its kernel_size must be odd and square, got (6, 6)'),
    (nn.Conv2d(6, 6, (7, 5), padding=(3, 2), groups=6), 'its kernel_size must be odd and square, got (7, 5)'),
    (depthwise(7, groups=3), 'its groups must be its number of channels, 6 (depthwise), got 3'),
    (nn.Conv2d(6, 12, 7, padding=3, groups=6), 'its out_channels must be its in_channels, 6, got 12'),
    (depthwise(33), 'kernel_size must hold the kernel of conv, 33 x 33, got 31'),
])
def test_a_refusal_names_the_reason(conv, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        PeripheralConv2d.from_conv(conv, 31)


def test_other_modules_and_grids_are_refused():
    with pytest.raises(TypeError, match=r'an nn\.Conv2d, got ConvTranspose2d'):
        PeripheralConv2d.from_conv(nn.ConvTranspose2d(6, 6, 3, groups=6), 31)
    with pytest.raises(ValueError, match=r'hold a kernel of 7 x 7, got a centre of 3 in \[4, 2, 1, 1\]'):
        PeripheralConv2d.from_conv(depthwise(7), [4, 2, 1, 1])


def test_grn_is_that_of_the_paper():
    layer = GRN(5)
    x = torch.randn(2, 7, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(layer(x), x)
    layer = layer.double()
    with torch.no_grad():
        layer.gamma.copy_(torch.randn(5))
        layer.beta.copy_(torch.randn(5))
    norm = torch.stack([image.flatten(0, 1).square().sum(0).sqrt() for image in x])
    response = norm / (norm.mean(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(layer(x), layer.gamma * x * response[:, None, None] + layer.beta + x)
    assert torch.autograd.gradcheck(layer, (x, ))
    # A dead channel, and a dead image: no gradient is NaN.
    dead = torch.zeros(1, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    layer(dead).sum().backward()
    assert torch.isfinite(dead.grad).all()


def test_grn_of_16_bits_is_that_of_32():
    layer = GRN(5)
    with torch.no_grad():
        layer.gamma.fill_(1)
    # Their squares overflow in fp16, as does the norm of an image.
    x = 300 * torch.randn(1, 256, 256, 5)
    half = layer.half()(x.half())
    torch.testing.assert_close(half.float(), layer.float()(x), rtol=2e-3, atol=1)
