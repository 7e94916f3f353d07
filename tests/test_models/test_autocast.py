"""Blocks, layers and backbones in bf16 and fp16 autocast: finite outputs and gradients for extreme, finite images."""

import pytest
import torch

from pelk_mm.layers import LayerNorm2d
from pelk_mm.models import PeLK, SLaK

DTYPES = (torch.float16, torch.bfloat16)
SHAPE = (2, 3, 64, 64)
NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def hot_pixel():
    x = torch.zeros(SHAPE)
    x[0, :, 30, 33] = 65504
    return x


# As images, those of pipelines that forgot to normalise included, to the largest fp16 number in one pixel.
IMAGES = {
    'zeros': torch.zeros(SHAPE),
    'white': torch.full(SHAPE, 255.),
    'hot-pixel': hot_pixel(),
    'huge-mean-tiny-deviation': 1000 + 1e-3 * NOISE,
    'sixteen-bits': 32752 + 32752 * NOISE.clamp(-1, 1),
    'denormal': 1e-40 * NOISE,
    'noise': NOISE,
}
PELK = dict(kernel_sizes=[31, 15, 7, 5])
BACKBONES = {
    'pelk-atto': lambda **kwargs: PeLK('atto', **PELK, **kwargs),
    'pelk-atto-no-norms': lambda **kwargs: PeLK('atto', branch_norm_cfg=None, **PELK, **kwargs),
    'slak-atto': lambda **kwargs: SLaK('atto', kernel_sizes=[31, 15, 7, 7], **kwargs),
}


@pytest.fixture(params=['native', 'box_sums', 'reference'])
def backend(request, monkeypatch):
    monkeypatch.setenv('PELK_MM_BACKEND', request.param)


def check(model, images, dtype):
    """The backward pass of a loss of ordinary size."""
    with torch.autocast('cpu', dtype):
        outputs = model(images)
    for output in outputs:
        assert output.isfinite().all()
    sum(output.float().mean() for output in outputs).backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()] == []


@pytest.mark.parametrize('kind', IMAGES)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('layer_scale', [1e-6, 1.0])
@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_stay_finite(name, layer_scale, dtype, kind):
    torch.manual_seed(0)
    model = BACKBONES[name](
        layer_scale_init_value=layer_scale, drop_path_rate=0.3, out_indices=(0, 3), gap_before_final_norm=False)
    check(model, IMAGES[kind], dtype)
    model.eval()
    model.switch_to_deploy()
    with torch.no_grad(), torch.autocast('cpu', dtype):
        assert all(output.isfinite().all() for output in model(IMAGES[kind]))


@pytest.mark.usefixtures('backend')
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_every_backend_stays_finite(dtype):
    torch.manual_seed(0)
    check(PeLK('atto', **PELK, layer_scale_init_value=1.0), IMAGES['sixteen-bits'], dtype)


@pytest.mark.parametrize('layer_scale', [0.0, 1.0])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_pooled_features_do_not_overflow(dtype, layer_scale):
    """The sum of a 64 x 64 map of 30s is over the largest fp16 number; its mean is not."""
    torch.manual_seed(0)
    model = PeLK(
        dict(depths=(1, ), channels=(8, ), kernel_sizes=(5, )), out_indices=0, layer_scale_init_value=layer_scale)
    model.downsample_layers[0][1].bias.data.fill_(30)
    images = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.autocast('cpu', dtype):
        pooled = model(images)[0]
    expected = model(images)[0]
    assert pooled.isfinite().all()
    if layer_scale:
        # The sum of block and input is fp32 then, so that small differences of large values last.
        assert (pooled - expected).abs().max() < 0.1


@pytest.mark.parametrize('value', [0., 255., 30000., 65504.])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_layer_norm_of_constant_maps(dtype, value):
    """No deviation to divide by but the rounding of the mean, which comes out as one deviation at most."""
    norm, x = LayerNorm2d(24), torch.full((2, 24, 5, 5), value).to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype):
        y = norm(x)
    assert y.abs().max() <= 1
    y.float().sum().backward()
    assert x.grad.isfinite().all()
