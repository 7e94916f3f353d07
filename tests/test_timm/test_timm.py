"""Every name that ``pelk_mm.timm`` registers does what timm asks of a model."""

import copy
import pickle

import pytest
import torch

timm = pytest.importorskip('timm')

from timm.layers import DropPath as TimmDropPath  # noqa: E402
from timm.models import load_checkpoint  # noqa: E402
from timm.models._manipulate import group_modules, group_parameters  # noqa: E402
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay  # noqa: E402

import pelk_mm.timm  # noqa: E402
from pelk_mm import nets  # noqa: E402
from pelk_mm.layers import DropPath  # noqa: E402

NAMES = sorted(name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith('pelk_mm.'))
# Kernels, branches and head of the name, in few channels.
NARROW = dict(depths=(1, 2, 1, 1), channels=(8, 12, 16, 20), layer_scale_init_value=1.0)
BY_NAME = pytest.mark.parametrize('name', NAMES)
KINDS = pytest.mark.parametrize('name', ['pelk_atto', 'slak_atto'])


def widths(name, channels=NARROW['channels']):
    factor = 1.0 if name.endswith('_w1') or 'convnext' in name else 1.3
    return [int(width * factor) for width in channels]


def narrow(name, **given):
    torch.manual_seed(0)
    return timm.create_model(name, **{**NARROW, 'num_classes': 7, **given})


def test_names():
    assert len(NAMES) == 86
    assert {'pelk_tiny_101', 'pelk_tiny_151', 'pelk_tiny_dense', 'pelk_base_w1', 'slak_small'} <= set(NAMES)
    for source in timm.list_models('convnext*', exclude_filters=['*_ols', '*_rms', '*_hnf', '*_mlp', '*_xxl*', '*ze*']):
        assert {f'pelk_{source}_51', f'pelk_{source}_101'} <= set(NAMES)
    assert set(NAMES) == set(timm.list_models(module='pelk'))
    assert timm.list_models('pelk_tin*')[:2] == ['pelk_tiny', 'pelk_tiny_101']
    assert not timm.is_model_pretrained('pelk_tiny')


@BY_NAME
def test_every_name_in_its_own_size(name):
    """Without memory or arithmetic: what it says of itself, and the shapes of what it returns."""
    model = timm.create_model(name, device='meta')
    state, cfg, features = model.state_dict(), model.default_cfg, model.feature_info
    assert cfg['architecture'] == name
    assert {f'{cfg["classifier"]}.weight', f'{cfg["first_conv"]}.weight'} <= set(state)
    assert [info['reduction'] for info in features] == [4, 8, 16, 32]
    assert [info['num_chs'] for info in features] == list(model.channels)
    modules = dict(model.named_modules())
    assert all(info['module'] in modules for info in features)
    assert model.num_features == model.head_hidden_size == model.channels[-1]
    assert model.get_classifier().weight.shape == (cfg['num_classes'], model.num_features)


def test_the_named_settings_are_those_of_the_nets():
    kernels = {'': 'tiny', '_101': 'tiny-101', '_151_w1': 'tiny-151-w1'}
    for suffix, arch in kernels.items():
        model = timm.create_model(f'pelk_tiny{suffix}', device='meta')
        with torch.device('meta'):
            net = nets.PeLK(arch)
        assert {key: value.shape for key, value in pelk_mm.timm.net_state_dict(model).items()} == {
            key: value.shape for key, value in net.state_dict().items()}
    assert timm.create_model('pelk_small_w1', device='meta').channels == (96, 192, 384, 768)
    dense = timm.create_model('pelk_tiny_dense', device='meta')
    assert dense.stages[0].blocks[0].mixer.mixer.convs['large'].weight.shape == (46, 1, 51, 51)


@BY_NAME
def test_features_training_and_state_dict(name):
    features = narrow(name, features_only=True, num_classes=None).eval()
    assert features.feature_info.channels() == widths(name)
    for height, width in ((64, 64), (96, 96), (75, 61)):
        outs = features(torch.rand(1, 3, height, width))
        assert [tuple(out.shape) for out in outs] == [
            (1, channels, height // scale, width // scale)
            for channels, scale in zip(widths(name), features.feature_info.reduction())]
        assert all(torch.isfinite(out).all() for out in outs)
    model = narrow(name).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = create_optimizer_v2(model, opt='adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    logits = model(torch.rand(2, 3, 64, 64))
    assert logits.shape == (2, 7)
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 5])).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    optimizer.step()
    after = model.state_dict()
    assert [key for key, parameter in model.named_parameters()
            if parameter.grad.abs().max() > 1e-6 and torch.equal(before[key], after[key])] == []
    twin = narrow(name, num_classes=7, drop_path_rate=0.1)
    assert str(twin.load_state_dict(after)) == '<All keys matched successfully>'
    x = torch.rand(1, 3, 32, 40)
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=0, atol=0)


@KINDS
def test_heads(name):
    model = narrow(name).eval()
    x = torch.rand(2, 3, 70, 64)
    maps = model.forward_features(x)
    assert maps.shape == (2, widths(name)[-1], 2, 2)
    pooled = model.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(pooled, model.head.norm(maps.mean((2, 3), keepdim=True)).flatten(1))
    torch.testing.assert_close(model(x), model.get_classifier()(pooled))
    torch.testing.assert_close(model.forward_head(maps), model(x))
    model.reset_classifier(5)
    assert (model(x).shape, model.num_classes) == ((2, 5), 5)
    model.reset_classifier(3, 'max')
    torch.testing.assert_close(
        model.forward_head(maps, pre_logits=True), model.head.norm(maps.amax((2, 3), keepdim=True)).flatten(1))
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(0, '')
    assert model(x).shape == maps.shape
    assert narrow(name, num_classes=0, global_pool='')(x).shape == maps.shape
    assert narrow(name, drop_rate=0.3).head.drop.p == 0.3


@KINDS
def test_intermediates(name):
    model = narrow(name).eval()
    x = torch.rand(1, 3, 64, 64)
    last, every = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x), rtol=0, atol=0)
    assert len(every) == 4
    some = model.forward_intermediates(x, indices=[0, -2], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(some, [every[0], every[2]], rtol=0, atol=0)
    # The network returns these, normed.
    net = getattr(nets, type(model).__name__)('atto', **NARROW, gap_before_final_norm=False)
    net.load_state_dict(pelk_mm.timm.net_state_dict(model))
    torch.testing.assert_close(net.eval()(x)[0], model.head.norm(last), rtol=1e-5, atol=1e-5)
    hooked = narrow(name, features_only=True, num_classes=None, feature_cls='hook', out_indices=(1, 3)).eval()
    getter = narrow(name, features_only=True, num_classes=None, out_indices=(1, -1)).eval()
    for features in (hooked, getter):
        assert features.feature_info.channels() == [widths(name)[1], widths(name)[3]]
        torch.testing.assert_close(features(x), [every[1], every[3]], rtol=0, atol=0)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt='NHWC')


@KINDS
def test_unneeded_stages_are_removed(name):
    full = narrow(name)
    features = narrow(name, features_only=True, num_classes=None, out_indices=(0, 1)).eval()
    assert not [key for key in features.state_dict() if 'head' in key or 'stages.2' in key or 'layers.2' in key]
    x = torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(
        features(x), full.eval().forward_intermediates(x, [0, 1], intermediates_only=True), rtol=0, atol=0)
    model = narrow(name)
    assert model.prune_intermediate_layers([1]) == [1]
    assert model.num_features == model.head_hidden_size == model(x).shape[1] == widths(name)[1]
    model.reset_classifier(4, 'avg')
    assert model(x).shape == (1, 4)


@pytest.mark.parametrize('arch', ['tiny', 'small', 'atto'])
def test_groups_of_layer_decay_are_those_of_get_layer_depth(arch):
    model = timm.create_model(f'pelk_{arch}', device='meta')
    names = [name for name, _ in model.named_parameters()]
    found = group_parameters(model, model.group_matcher(), reverse=True)
    depths = {name: model.get_layer_depth(name) for name in names}
    # The depths of atto leave out some numbers, which timm does not.
    dense = {depth: index for index, depth in enumerate(sorted({depth for depth, _ in depths.values()}))}
    assert found == {name: dense[depth] for name, (depth, _) in depths.items()}
    if arch != 'atto':
        assert found == {name: depth for name, (depth, _) in depths.items()}
        scales = {id(parameter): group['lr_scale'] for group in param_groups_layer_decay(model, layer_decay=0.8)
                  for parameter in group['params']}
        for name, parameter in model.named_parameters():
            depth, number = depths[name]
            assert scales[id(parameter)] == pytest.approx(0.8**(number - depth - 1))
    modules = group_modules(model, model.group_matcher(), reverse=True)
    assert modules['stages.2.blocks.0.norm'] == found['stages.2.blocks.0.norm.weight']
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert [coarse[name] for name in (
        'downsample_layers.0.0.weight', 'stages.0.blocks.0.gamma', 'downsample_layers.1.0.weight',
        'stages.1.position_embedding.weight', 'stages.3.blocks.0.norm.bias', 'head.norm.weight', 'head.fc.bias')
    ] == [0, 1, 2, 2, 4, 5, 5]


def test_weight_decay():
    model = narrow('pelk_atto')
    assert model.no_weight_decay() == {f'stages.{stage}.position_embedding.weight' for stage in range(4)}
    plain, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    shapes = {parameter.ndim for parameter in decayed['params']}
    assert (plain['weight_decay'], decayed['weight_decay'], shapes) == (0, 0.05, {2, 4})
    assert {parameter.ndim for parameter in plain['params']} == {1, 3}


@KINDS
def test_gradient_checkpointing(name):
    found = []
    for enable in (False, True):
        model = narrow(name).double().train()
        model.set_grad_checkpointing(enable)
        x = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        model(x).square().sum().backward()
        assert all(block.with_cp == enable for stage in model.stages for block in stage.blocks)
        found.append(({key: parameter.grad for key, parameter in model.named_parameters()}, model.state_dict()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
    model.set_grad_checkpointing(False)
    assert not model.stages[0].blocks[0].with_cp


@KINDS
def test_arguments_reach_the_network(name):
    model = narrow(name, drop_path_rate=0.4, act_layer='silu', norm_layer='batchnorm2d')
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert not [module for module in model.modules() if isinstance(module, TimmDropPath)]
    kinds = {type(module) for module in model.modules()}
    assert torch.nn.SiLU in kinds
    assert type(model.head.norm) is torch.nn.BatchNorm2d
    for channels in (1, 4):
        other = narrow(name, in_chans=channels)
        assert other(torch.rand(2, channels, 32, 32)).shape == (2, 7)
        assert other.in_chans == channels
    weights = narrow(name, kernel_sizes=(9, 9, 7, 7), **dict(grids='dense') if name == 'pelk_atto' else {}).state_dict()
    last = [weight for key, weight in weights.items() if key.startswith('stages.3.') and weight.ndim == 4]
    assert max(weight.shape[-2] for weight in last) == 7
    assert narrow(name, dtype=torch.float64).head.fc.weight.dtype == torch.float64
    with pytest.raises(ValueError, match='output_stride must be 32, as there is no dilated form, got 16'):
        narrow(name, output_stride=16)
    with pytest.raises(ValueError, match='drop_path_rate must be in'):
        narrow(name, drop_path_rate=1.0)


@KINDS
def test_copies_and_deployment(name):
    model = narrow(name).eval()
    x = torch.rand(1, 3, 48, 48)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
    before, size = model(x), len(model.state_dict())
    merged = timm.utils.reparameterize_model(model)
    model.switch_to_deploy()
    for deployed in (merged, model):
        assert len(deployed.state_dict()) < size
        torch.testing.assert_close(deployed(x), before, rtol=1e-4, atol=1e-5)


@KINDS
def test_files(name, tmp_path):
    """timm's own checkpoints, those of the plain network, and those of classifiers and segmentors of OpenMMLab."""
    model = narrow(name).eval()
    x = torch.rand(1, 3, 40, 40)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'timm.pth')
    other = narrow(name, layer_scale_init_value=0.1)
    load_checkpoint(other, str(tmp_path / 'timm.pth'))
    torch.testing.assert_close(other.eval()(x), model(x), rtol=0, atol=0)
    net, head = pelk_mm.timm.net_state_dict(model), {key: value for key, value in model.state_dict().items()
                                                     if key.startswith('head.fc')}
    backbone = {f'backbone.{key}': value for key, value in net.items()}
    files = dict(
        classifier=dict(state_dict=dict(backbone, **head)),
        segmentor=dict(state_dict=dict(backbone, **{'backbone.norm1.weight': torch.ones(5), 'decode_head.w': x})),
        net=net)
    for kind, content in files.items():
        torch.save(content, tmp_path / f'{kind}.pth')
        overlay = dict(file=str(tmp_path / f'{kind}.pth'), num_classes=7)
        features = narrow(name, features_only=True, num_classes=None, pretrained=True, pretrained_cfg_overlay=overlay)
        torch.testing.assert_close(features.eval()(x), model.forward_intermediates(x)[1], rtol=0, atol=0)
    overlay = dict(file=str(tmp_path / 'classifier.pth'), num_classes=7)
    loaded = narrow(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    fewer = narrow(name, num_classes=3, in_chans=1, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(fewer.forward_head(fewer.forward_features(grey), pre_logits=True),
                               model.forward_head(model.forward_features(grey.expand(-1, 3, -1, -1)), pre_logits=True),
                               rtol=1e-4, atol=1e-4)


def test_there_are_no_weights_of_pelk():
    for name in ('pelk_tiny', 'slak_tiny'):
        with pytest.raises(RuntimeError, match=f'No pretrained weights exist for {name}.*pelk_convnext_tiny_51'):
            timm.create_model(name, pretrained=True, device='meta')
