"""A ConvNeXt of any code base becomes a net of larger kernels that computes the same."""

import re
import warnings

import pytest
import torch
from torch import nn

from pelk_mm.layers import GRN, LayerNorm2d
from pelk_mm.nets import PeLK, compare_features, convnext_state_dict, grow_convnext
from pelk_mm.nets.weight_files import read_weights

from .convnexts import DEPTHS, SOURCES, WIDTHS, Released, classify, logits_of, make_source, relative

KERNELS = (15, 13, 11, 9)
EVERY_SOURCE = pytest.mark.parametrize('v2', [False, True], ids=['V1', 'V2'])


def of_both_versions(names):
    """Parametrize a test by ``name`` and ``v2``; torchvision has no V2."""
    return pytest.mark.parametrize(('name', 'v2'), [
        pytest.param(name, v2, id=f'V{1 + v2}-{name}') for v2 in (False, True) for name in names
        if not (v2 and name == 'torchvision')])


def grow(source, kernel_sizes=KERNELS, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return grow_convnext(source, kernel_sizes, **kwargs).eval()


@pytest.fixture(scope='module')
def released():
    return make_source('facebookresearch')


@of_both_versions(SOURCES)
@torch.no_grad()
def test_every_naming_gives_the_same_features(name, v2):
    model = make_source(name, v2)
    # That of timm's test model has another epsilon and activation, which a state dict does not have.
    sources = [model] if 'features_only' in name else [model, model.state_dict()]
    for net in map(grow, sources):
        assert net.channels == (WIDTHS if 'features_only' not in name else (24, 32, 48, 64))
        assert [grid.kernel_size for grid in net.grids] == list(KERNELS)
        assert isinstance(net.stages[0].blocks[0].grn, GRN) == v2
        for height, width in ((224, 224), (101, 77)):
            images = torch.rand(1, 3, height, width)
            differences = compare_features(model, net, images)
            assert len(differences) == 4
            assert max(differences) < 1e-5, differences


@of_both_versions(['facebookresearch', 'timm', 'torchvision', 'mmpretrain', 'transformers'])
@torch.no_grad()
def test_a_classifier_gives_the_same_logits(name, v2):
    model, images = make_source(name, v2), torch.rand(2, 3, 64, 52)
    weights = convnext_state_dict(model.state_dict())
    assert set(weights.head) == {'head.fc.weight', 'head.fc.bias'}
    assert (weights.naming, weights.arch['depths'], weights.arch['channels']) == (name, DEPTHS, WIDTHS)
    assert relative(classify(grow(model), weights.head, images), logits_of(model, images)) < 1e-5


@torch.no_grad()
def test_norms_of_a_detector_are_taken_over():
    model, images = make_source('mmpretrain, dense'), torch.rand(2, 3, 64, 52)
    with pytest.warns(UserWarning, match=r'has no norm1: such norms'):
        net = grow_convnext({f'backbone.{name}': value for name, value in model.state_dict().items()}, KERNELS,
                            out_indices=(0, 1, 2, 3), gap_before_final_norm=False).eval()
    outs = net(images)
    assert max(relative(outs[stage], out) for stage, out in zip((0, 2, 3), model(images))) < 1e-5
    assert torch.equal(net.norm1.weight, torch.ones(12))
    assert not net.norm1.bias.any()
    early = grow(model, out_indices=(0, 2), gap_before_final_norm=False)
    assert len(early.stages) == 3
    assert all(map(torch.equal, early(images), (outs[0], outs[2])))


@torch.no_grad()
def test_of_the_published_sizes(released):
    """Kernels of 51 and 101, and of the source's own size: nothing is added then."""
    images = torch.rand(1, 3, 96, 128)
    for sizes, kwargs in (((51, 49, 47, 13), {}), ((101, 69, 67, 13), {}), ((51, [4, 4, 2, 1, 1, 1, 1], 47, 13), {}),
                          ((51, 49, 47, 13), dict(center=9, base=3))):
        assert max(compare_features(released, grow(released, sizes, **kwargs), images)) < 1e-5
    same = grow(released, (7, 7, 7, 7))
    assert sum(p.numel() for p in same.parameters()) == sum(
        p.numel() for name, p in released.named_parameters() if not name.startswith('head'))
    assert grow(released).grids[0].center == 7
    assert grow(released, center=9).grids[3].half == (1, ) * 5


@torch.no_grad()
def test_other_kernels_of_the_source():
    for kernel in (3, 9):
        model = make_source('facebookresearch', kernel=kernel)
        net = grow(model)
        assert net.grids[0].center == max(kernel, 7)
        assert max(compare_features(model, net, torch.rand(1, 3, 64, 52))) < 1e-5


@EVERY_SOURCE
def test_gradients_reach_what_is_new(v2):
    net = grow(make_source('facebookresearch', v2), position_embedding=True).train()
    net(torch.rand(2, 3, 96, 96))[0].square().sum().backward()
    for stage, grid in zip(net.stages[:3], net.grids):
        first, last = (grid.num_cells - 7) // 2, (grid.num_cells + 7) // 2
        for block in stage.blocks:
            theta = block.mixer.mixer.large.weight
            outer = torch.ones(theta.shape[-2:], dtype=torch.bool)
            outer[first:last, first:last] = False
            assert not theta[:, 0, outer].any()
            assert (theta.grad[:, 0, outer] != 0).all()
        assert not stage.position_embedding.weight.any()
        assert (stage.position_embedding.weight.grad != 0).any()
    assert all(parameter.grad is not None for parameter in net.parameters())


@torch.no_grad()
def test_the_embedding_starts_without_effect(released):
    images = torch.rand(1, 3, 64, 64)
    plain, embedded = grow(released), grow(released, position_embedding=True)
    assert torch.equal(plain(images)[0], embedded(images)[0])
    assert embedded.stages[0].position_embedding is not None
    embedded.switch_to_deploy()
    assert torch.equal(plain(images)[0], embedded(images)[0])


WRAPPINGS = {
    'state_dict': lambda weights: dict(state_dict=weights, meta={}),
    'model': lambda weights: dict(model=weights, optimizer={}),
    'model_ema': lambda weights: dict(model_ema=weights),
    'module.': lambda weights: {f'module.{name}': value for name, value in weights.items()},
    'segmentor': lambda weights: dict(
        state_dict={**{f'backbone.{name}': value for name, value in weights.items() if not name.startswith('head')},
                    'decode_head.conv_seg.weight': torch.ones(1)}),
}


@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_wrapped_checkpoints(wrapping, released, tmp_path):
    checkpoint = WRAPPINGS[wrapping](released.state_dict())
    torch.save(checkpoint, tmp_path / 'weights.pth')
    expected = convnext_state_dict(released)
    for source in (checkpoint, tmp_path / 'weights.pth'):
        weights = convnext_state_dict(source)
        assert all(torch.equal(weights.backbone[name], value) for name, value in expected.backbone.items())
        assert set(weights.head) == ({'decode_head.conv_seg.weight'} if wrapping == 'segmentor' else {*expected.head})


def test_dtype_of_a_model_and_arguments_of_the_net(released):
    net = grow_convnext(Released(True).double(), KERNELS, drop_path_rate=0.3, frozen_stages=1, with_cp=True)
    assert net.training
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    assert net.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.3)
    assert not net.stages[0].blocks[0].pointwise_conv1.weight.requires_grad
    gray = Released(False, in_channels=1)
    assert grow(gray, in_channels=1)(torch.rand(1, 1, 64, 64))[0].shape == (1, 20)
    other = grow(released, norm_layer=lambda width: LayerNorm2d(width, eps=1e-3), act_layer=nn.ReLU)
    assert (other.norm3.eps, type(other.stages[0].blocks[0].act)) == (1e-3, nn.ReLU)


@torch.no_grad()
def test_epsilon_and_activation_of_a_model_are_taken_over():
    model = Released(False)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-2
        elif isinstance(module, nn.GELU):
            module.approximate = 'tanh'
    model = model.eval()
    images = torch.rand(1, 3, 64, 64)
    assert max(compare_features(model, grow(model), images)) < 1e-5
    assert max(compare_features(model, grow(model.state_dict()), images)) > 1e-5


def without(key):
    return lambda weights: {name: value for name, value in weights.items() if name != key}


@pytest.mark.parametrize('change, message', [
    (without('stages.2.1.pwconv2.bias'), r'names of facebookresearch, but lacks stages\.2\.1\.pwconv2\.bias '),
    (without('stages.1.0.gamma'), r'lacks stages\.1\.0\.gamma '),
    (lambda weights: dict(weights, extra=torch.ones(1)), 'nothing here corresponds to: extra'),
    (lambda weights: {**weights, 'stages.0.0.attn.weight': torch.ones(1)}, r'to: stages\.0\.0\.attn\.weight'),
    (lambda weights: {**weights, 'downsample_layers.0.0.weight': torch.ones(8, 3, 2, 2)},
     r'stem of the source must be one 4 x 4 .*downsample_layers\.0\.0 has a kernel of 2 x 2'),
    (lambda weights: {**weights, 'stages.0.0.dwconv.weight': torch.ones(8, 1, 6, 6)}, r'odd and square, stages\.0\.0'),
    (lambda weights: {**weights, 'stages.0.0.pwconv1.weight': torch.ones(8, 8)},
     r'pointwise_conv1\.bias must have the shape \(8,\), got \(32,\)'),
    (lambda weights: {**weights, **{f'teacher.{name}': value for name, value in weights.items()}},
     r"2 ConvNeXts, under \['', 'teacher\.'\]: say by prefix"),
    (lambda weights: dict(weight=torch.ones(1)), 'no ConvNeXt with the names of .*; its first names are weight'),
    (lambda weights: dict(state_dict=dict(a=1)), r"a mapping of \['state_dict'\]"),
    (lambda weights: [weights], 'got list'),
])
def test_names_without_a_counterpart_are_named(change, message, released):
    with pytest.raises(ValueError, match=message):
        grow(change(released.state_dict()))


@pytest.mark.parametrize('kwargs, message', [
    (dict(kernel_sizes=(15, 13, 5, 9)), 'must hold the kernels of the source, 7 x 7 in stage 2, got 5'),
    (dict(kernel_sizes=(15, [5, 2, 1, 1], 11, 9)), r'stages\.1\.blocks\.0\S*: the centre .* hold .* 3 in'),
    (dict(kernel_sizes=(15, 13)), r'kernel_sizes must have one entry per stage \(4'),
    (dict(in_channels=4), 'in_channels must be that of the stem of the source, 3, got 4'),
    (dict(width_factor=1.3, deploy=True), 'the source decides deploy, width_factor'),
    (dict(prefix='backbone.'), "under the prefix 'backbone.'"),
])
def test_arguments_that_contradict_the_source(kwargs, message, released):
    with pytest.raises(ValueError, match=message):
        grow(released, **kwargs)


def test_a_part_is_chosen_by_its_prefix(released):
    other = make_source('facebookresearch', True).state_dict()
    both = {**released.state_dict(), **{f'teacher.{name}': value for name, value in other.items()}}
    assert convnext_state_dict(both, prefix='teacher.').arch['use_grn']


@torch.no_grad()
def test_variants_of_timm():
    timm = pytest.importorskip('timm')
    refused = dict(convnext_atto_ols='an overlapping stem', convnext_atto_rms='lacks stem.1.bias')
    for name, message in refused.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            grow_convnext(timm.create_model(name))
    with pytest.raises(ValueError, match=r'dilation must be 1, got \(2, 2\)'):
        grow_convnext(timm.create_model('test_convnext', output_stride=16))
    # SiLU, kernels of 7, 5, 5 and 3.
    model = timm.create_model('test_convnext3').eval()
    assert convnext_state_dict(model).arch['kernel_sizes'] == (7, 5, 5, 3)
    assert max(compare_features(model, grow(model), torch.rand(1, 3, 64, 64))) < 1e-5
    first = timm.create_model('convnext_tiny_hnf', depths=(1, 1, 1, 1), dims=WIDTHS)
    with pytest.raises(ValueError, match='head_norm_first'):
        grow(first)
    images = torch.rand(1, 3, 64, 64)
    features = grow(first, gap_before_final_norm=False)(images)[0]
    assert relative(features, first.eval().forward_features(images)) < 1e-5


def test_files_of_safetensors(released, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    weights = {**released.state_dict(), 'head.bias': torch.arange(5.).to(torch.bfloat16)}
    safetensors.save_file(weights, tmp_path / 'weights.safetensors', metadata=dict(format='pt'))
    read = read_weights(tmp_path / 'weights.safetensors')
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in weights.items())
    content = (tmp_path / 'weights.safetensors').read_bytes()
    for damaged in (content[:-1], content[:100], b''):
        (tmp_path / 'damaged.safetensors').write_bytes(damaged)
        with pytest.raises(ValueError, match=r'damaged\.safetensors is no complete'):
            read_weights(tmp_path / 'damaged.safetensors')


def test_comparison_finds_a_difference(released):
    net = grow(released)
    with torch.no_grad():
        net.stages[2].blocks[0].gamma[0] += 0.1
    differences = compare_features(released, net, torch.rand(1, 3, 64, 64))
    assert max(differences[:2]) < 1e-5
    assert min(differences[2:]) > 1e-4
    with pytest.raises(ValueError, match=r'call \.eval\(\)'):
        compare_features(released, net.train(), torch.rand(1, 3, 64, 64))


def test_sparsity_and_depths_of_a_grown_net():
    net = grow(make_source('facebookresearch', True))
    sparse = net.get_sparse_parameters()
    assert not any('grn' in name for name in sparse)
    assert 'stages.0.blocks.0.mixer.mixer.convs.large.weight' in sparse
    assert net.get_layer_depth('backbone.stages.2.blocks.1.grn.gamma', 'backbone.') == (3, 8)
    assert isinstance(net, PeLK)
