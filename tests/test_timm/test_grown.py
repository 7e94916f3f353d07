"""Names of grown ConvNeXts: with timm's weights they compute what timm's ConvNeXt computes."""

import json

import pytest
import torch

timm = pytest.importorskip('timm')

import pelk_mm.timm  # noqa: E402, F401
from pelk_mm.nets import PeLK, compare_features, grow_convnext  # noqa: E402

BOTH = pytest.mark.parametrize('source', ['convnext_atto', 'convnextv2_atto', 'convnext_tiny', 'convnextv2_tiny'])
SMALL = pytest.mark.parametrize('source', ['convnext_atto', 'convnextv2_atto'])


@pytest.fixture
def convnext(tmp_path):
    """Makes a ConvNeXt of timm with weights of which every one matters, and a file of them."""

    def make(name, **given):
        torch.manual_seed(0)
        model = timm.create_model(name, **given).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
                else:
                    parameter.normal_(std=parameter[0].numel()**-0.5)
        file = tmp_path / f'{name}.pth'
        torch.save(model.state_dict(), file)
        return model, dict(file=str(file))

    return make


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@BOTH
@torch.no_grad()
def test_features_and_logits_are_those_of_convnext(source, convnext):
    model, overlay = convnext(source)
    x = torch.rand(1, 3, *((96, 75) if 'atto' in source else (64, 64)))
    grown = timm.create_model(f'pelk_{source}_51', pretrained=True, pretrained_cfg_overlay=overlay).eval()
    close(grown(x), model(x))
    features = timm.create_model(
        f'pelk_{source}_101', features_only=True, out_indices=(0, 2), pretrained=True, pretrained_cfg_overlay=overlay)
    expected = model.forward_intermediates(x, indices=(0, 2), intermediates_only=True)
    for found, right in zip(features.eval()(x), expected, strict=True):
        close(found, right)
    assert max(compare_features(model, grow_convnext(model).eval(), x)) < 1e-5
    assert isinstance(grown, PeLK)
    assert not [key for key in grown.state_dict() if 'position_embedding' in key]


@SMALL
def test_training_reaches_the_outer_cells(source, convnext):
    model, overlay = convnext(source)
    grown = timm.create_model(f'pelk_{source}_51', pretrained=True, pretrained_cfg_overlay=overlay).train()
    theta = grown.stages[0].blocks[0].mixer.mixer.convs['large'].weight
    centre = theta[:, :, 4:-4, 4:-4]
    assert centre.shape[-1] == 7
    assert torch.count_nonzero(theta) == torch.count_nonzero(centre) == centre.numel()
    grown(torch.rand(2, 3, 224, 224)).square().mean().backward()
    assert (theta.grad[:, :, 0].abs() > 0).any()


@SMALL
@torch.no_grad()
def test_other_arguments(source, convnext):
    """Kernels, embedding, classes and channels that the checkpoint does not have; as timm treats its own models."""
    model, overlay = convnext(source)
    x = torch.rand(1, 3, 64, 64)
    others = dict(kernel_sizes=(13, 13, 11, 9), position_embedding=True, drop_path_rate=0.2)
    grown = timm.create_model(f'pelk_{source}_51', pretrained=True, pretrained_cfg_overlay=overlay, **others).eval()
    assert [grid.kernel_size for grid in grown.grids] == [13, 13, 11, 9]
    close(grown(x), model(x))
    names = (source, f'pelk_{source}_51')
    for given in (dict(num_classes=5), dict(num_classes=0), dict(num_classes=5, in_chans=1), dict(in_chans=4)):
        pixels = torch.rand(1, given.get('in_chans', 3), 64, 64)
        theirs, ours = (timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **given).eval()
                        for name in names)
        close(ours.forward_features(pixels), theirs.forward_features(pixels))
        maps = theirs.forward_features(pixels)
        close(ours.forward_head(maps, pre_logits=True), theirs.forward_head(maps, pre_logits=True))
        assert ours(pixels).shape == theirs(pixels).shape


@torch.no_grad()
def test_the_backbone_of_a_segmentor(convnext, tmp_path):
    model, _ = convnext('convnext_atto')
    state = {f'backbone.{key}': value for key, value in model.state_dict().items() if not key.startswith('head.')}
    torch.save(dict(state_dict=dict(state, **{'decode_head.conv.weight': torch.ones(2)})), tmp_path / 'segmentor.pth')
    features = timm.create_model('pelk_convnext_atto_51', features_only=True, pretrained=True,
                                 pretrained_cfg_overlay=dict(file=str(tmp_path / 'segmentor.pth'))).eval()
    x = torch.rand(1, 3, 64, 64)
    for found, right in zip(features(x), model.forward_intermediates(x, intermediates_only=True), strict=True):
        close(found, right)


@torch.no_grad()
def test_masked_autoencoders_without_a_norm_of_the_head(convnext, tmp_path):
    model, _ = convnext('convnextv2_atto', num_classes=0)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith('head.')}
    torch.save(state, tmp_path / 'fcmae.pth')
    grown = timm.create_model('pelk_convnextv2_atto_51.fcmae', pretrained=True,
                              pretrained_cfg_overlay=dict(file=str(tmp_path / 'fcmae.pth')))
    assert (grown.num_classes, grown.pretrained_cfg['tag']) == (0, 'fcmae')
    x = torch.rand(1, 3, 64, 64)
    close(grown.eval().forward_features(x), model.forward_features(x))


def test_other_files_are_refused(tmp_path, convnext):
    _, overlay = convnext('convnext_femto')
    with pytest.raises(ValueError, match='must have the shape'):
        timm.create_model('pelk_convnext_atto_51', pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(ValueError, match="must be of SLaK, got other names such as 'stem.0.weight'"):
        timm.create_model('slak_atto', pretrained=True, pretrained_cfg_overlay=overlay)
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path / 'resnet.pth')
    with pytest.raises(ValueError, match='ConvNeXt'):
        timm.create_model('pelk_convnext_atto_51', pretrained=True,
                          pretrained_cfg_overlay=dict(file=str(tmp_path / 'resnet.pth')))


@pytest.mark.parametrize('source', timm.list_models(['convnext_tiny', 'convnext_xlarge', 'convnextv2_*']))
def test_weights_are_where_timm_has_those_of_convnext(source):
    theirs = timm.models.get_arch_pretrained_cfgs(source)
    ours = timm.models.get_arch_pretrained_cfgs(f'pelk_{source}_51')
    assert [name.removeprefix('pelk_').replace('_51', '', 1) for name in ours] == list(theirs)
    for (_, cfg), (name, right) in zip(ours.items(), theirs.items()):
        changed = {key for key, value in cfg.to_dict().items() if right.to_dict().get(key) != value}
        assert changed == {'architecture', 'first_conv'}, name
        json.dumps(cfg.to_dict())
    first = timm.models.get_pretrained_cfg(f'pelk_{source}_51')
    assert first.tag == timm.models.get_pretrained_cfg(source).tag
    assert timm.models.is_model_pretrained(f'pelk_{source}_51') == timm.models.is_model_pretrained(source)
    with torch.device('meta'):
        net = timm.create_model(source)
        grown = timm.create_model(f'pelk_{source}_51')
    outer = sum(module.weight.numel() - 49 * len(module.weight) for name, module in grown.named_modules()
                if name.endswith('convs.large'))
    assert sum(p.numel() for p in grown.parameters()) - outer == sum(p.numel() for p in net.parameters())
