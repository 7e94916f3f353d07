"""The backbone: every arch and every argument, errors, deployment, compilation."""

import copy
import inspect
import re

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from pelk_mm.layers import PeripheralConv2d
from pelk_mm.models import PeLK
from pelk_mm.testing.random_weights import randomise

pytestmark = pytest.mark.slow

SMALL = dict(arch=dict(depths=[1, 1, 2, 1], channels=[16, 24, 32, 40], kernel_sizes=[15, 13, 11, 9]))
SPECIFIED = {
    'tiny': ((3, 3, 9, 3), (124, 249, 499, 998)),
    'small': ((3, 3, 27, 3), (124, 249, 499, 998)),
    'base': ((3, 3, 27, 3), (166, 332, 665, 1331)),
}
KERNELS = {'': ((51, 49, 47, 13), 5), '-101': ((101, 69, 67, 13), 7), '-151': ((151, 89, 87, 13), 7)}


@pytest.mark.parametrize('arch', PeLK.arch_settings)
def test_every_arch_builds_and_has_the_specified_dimensions(arch):
    with torch.device('meta'):
        model = PeLK(arch)
    size, *suffixes = arch.removesuffix('-w1').split('-')
    kernels, center = KERNELS[''.join(f'-{suffix}' for suffix in suffixes)]
    assert tuple(grid.kernel_size for grid in model.grids) == kernels
    assert all(grid.center == center for grid in model.grids)
    if size in SPECIFIED:
        depths, channels = SPECIFIED[size]
        # Those of ConvNeXt.
        narrow = {124: (96, 192, 384, 768), 166: (128, 256, 512, 1024)}[channels[0]]
        assert (model.depths, model.channels) == (depths, narrow if arch.endswith('-w1') else channels)
        first = model.stages[0].blocks[0].mixer
        mixed = {124: 46, 166: 62, 96: 36, 128: 48}[model.channels[0]]
        assert first.mixed_channels == int(3 / 8 * model.channels[0]) == mixed
        assert first.mixer.large.weight.shape[0] == first.mixed_channels


def test_embedding_parameters_of_tiny():
    """The embedding adds 0.82 M to T."""
    with torch.device('meta'):
        model = PeLK('tiny')
    embedding = sum(p.numel() for name, p in model.named_parameters() if 'position_embedding' in name)
    assert embedding == 46 * 51**2 + 93 * 49**2 + 187 * 47**2 + 374 * 13**2
    assert round(embedding / 1e6, 2) == 0.82


@pytest.mark.parametrize('toolbox', ['mmengine', 'mmpretrain', 'mmseg', 'mmdet'])
def test_every_toolbox_builds_it(toolbox):
    """From the toolbox's own registry, with norms and activations of its configs."""
    registry = pytest.importorskip(f'{toolbox}.registry').MODELS
    with DefaultScope.overwrite_default_scope(toolbox):
        model = registry.build(dict(type='pelk_mm.PeLK', **SMALL, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')))
    assert type(model) is PeLK
    assert (model.channels, type(model.norm3)) == ((20, 31, 41, 52), nn.BatchNorm2d)


@pytest.mark.parametrize('height, width', [(64, 64), (65, 97), (37, 50)])
def test_shapes_also_of_sides_that_are_no_multiple_of_32(height, width):
    model = PeLK(**SMALL, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
    outs = model(torch.rand(2, 3, height, width))
    size = (height // 4, width // 4)
    for out, channels in zip(outs, model.channels):
        assert out.shape == (2, channels, *size)
        size = (size[0] // 2, size[1] // 2)


# Every constructor argument: a value, and what it must change.
ARGUMENTS = dict(
    arch=('pico', lambda m: m.depths == (2, 2, 6, 2)),
    kernel_sizes=([17, 13, [4, 2, 1], 9], lambda m: [g.kernel_size for g in m.grids] == [17, 13, 13, 9]),
    center=(3, lambda m: all(grid.center == 3 for grid in m.grids)),
    base=(3, lambda m: m.grids[0].half == (2, 3, 1, 1, 1)),
    grids=([[4, 2, 1, 1], None, None, None], lambda m: m.grids[0].half == (4, 2, 1, 1)),
    conv_ratio=(1.0, lambda m: m.stages[0].blocks[0].mixer.mixed_channels == m.channels[0]),
    width_factor=(1.0, lambda m: m.channels == (16, 24, 32, 40)),
    small_kernel=(None, lambda m: list(m.stages[0].blocks[0].mixer.mixer.convs) == ['large']),
    position_embedding=(False, lambda m: m.stages[0].position_embedding is None),
    branch_norm_cfg=(None, lambda m: not m.stages[0].blocks[0].mixer.mixer.norms and
                     m.stages[0].blocks[0].mixer.mixer.large.bias is not None),
    depths=([2, 1, 1, 1], lambda m: len(m.stages[0].blocks) == 2),
    channels=([8, 16, 24, 32], lambda m: m.channels[0] == 10),
    in_channels=(4, lambda m: m.downsample_layers[0][0].weight.shape[1] == 4),
    ffn_ratio=(2.0, lambda m: m.stages[0].blocks[0].pointwise_conv1.out_features == 2 * m.channels[0]),
    norm_cfg=(dict(type='BN'), lambda m: isinstance(m.stages[0].blocks[0].norm, nn.BatchNorm2d)),
    act_cfg=(dict(type='ReLU'), lambda m: isinstance(m.stages[0].blocks[0].act, nn.ReLU)),
    drop_path_rate=(0.4, lambda m: getattr(m.stages[3].blocks[0].drop_path, 'drop_prob', 0) == pytest.approx(0.4)),
    layer_scale_init_value=(0.0, lambda m: m.stages[0].blocks[0].gamma is None),
    use_grn=(True, lambda m: m.stages[0].blocks[0].grn is not None),
    stem_patch_size=(1, lambda m: m.downsample_layers[0](torch.rand(1, 3, 8, 12)).shape[-2:] == (8, 12)),
    out_indices=([0, -1], lambda m: m.out_indices == (0, 3)),
    frozen_stages=(2, lambda m: not any(p.requires_grad for p in m.stages[1].parameters()) and
                   all(p.requires_grad for p in m.stages[2].parameters())),
    gap_before_final_norm=(False, lambda m: m(torch.rand(2, 3, 64, 64))[0].ndim == 4),
    with_cp=(True, lambda m: m.stages[0].blocks[0].with_cp),
    deploy=(True, lambda m: list(m.stages[0].blocks[0].mixer.mixer.convs) == ['large'] and
            not m.stages[0].blocks[0].mixer.mixer.norms and m.stages[0].position_embedding is None),
    init_cfg=(dict(type='Pretrained', checkpoint='x'), lambda m: (m.init_cfg or {}).get('checkpoint') == 'x'),
)


@pytest.mark.parametrize('name', sorted(ARGUMENTS))
def test_every_argument_changes_something(name):
    value, changed = ARGUMENTS[name]
    given = copy.deepcopy(value)
    assert not changed(PeLK(**SMALL))
    assert changed(PeLK(**{**SMALL, name: value}))
    assert value == given, "the caller's value was edited"


def test_every_argument_is_tested():
    assert set(inspect.signature(PeLK).parameters) == set(ARGUMENTS)


@pytest.mark.parametrize('arguments, words', [
    (dict(arch='tinny'), ('arch', "'tinny'", "'tiny'")),
    (dict(arch=dict(depths=[1])), ('arch', 'channels', 'kernel_sizes')),
    (dict(SMALL, kernel_sizes=[50, 13, 11, 9]), ('kernel_size', 'odd', '50')),
    (dict(SMALL, kernel_sizes=[51, 13]), ('kernel_sizes', '4', '2')),
    (dict(SMALL, kernel_sizes=[15, 13, 11, 9], grids=[[4, 2, 1], None, None, None]), ('13', '15')),
    (dict(SMALL, grids=[None]), ('grids', '4', '1')),
    (dict(SMALL, grids='sparse'), ('grids', 'sparse')),
    (dict(SMALL, center=11), ('center', '11', '9')),
    (dict(SMALL, center=4), ('center', 'odd', '4')),
    (dict(SMALL, conv_ratio=0), ('conv_ratio', '(0, 1]', '0')),
    (dict(SMALL, conv_ratio=1.5), ('conv_ratio', '1.5')),
    (dict(SMALL, width_factor=-1), ('width_factor', '-1')),
    (dict(SMALL, small_kernel=4), ('small_kernel', 'odd', '4')),
    (dict(SMALL, drop_path_rate=1.0), ('drop_path_rate', '[0, 1)', '1.0')),
    (dict(SMALL, out_indices=(0, 4)), ('out_indices', '-4 ... 3', '4')),
    (dict(SMALL, frozen_stages=5), ('frozen_stages', '0 ... 4', '5')),
    (dict(SMALL, depths=[1, 1, 1, 0]), ('depths', 'positive')),
    (dict(SMALL, channels=[8, 8, 8]), ('channels', '4', '3')),
])
def test_wrong_values_say_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        PeLK(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_argument():
    with pytest.raises(TypeError, match='kernel_size'):
        PeLK('atto', kernel_size=51)


@pytest.mark.parametrize('center', [1, 3, 5, 7])
@pytest.mark.parametrize('position_embedding', [True, False])
def test_switch_to_deploy(center, position_embedding):
    model = randomise(PeLK(**SMALL, center=center, position_embedding=position_embedding)).double().eval()
    x = torch.rand(2, 3, 64, 48).double()
    before = model(x)[0]
    model.switch_to_deploy()
    torch.testing.assert_close(model(x)[0], before)
    kinds = [type(module) for module in model.modules()]
    assert nn.BatchNorm2d not in kinds
    assert (sum(isinstance(module, nn.Conv2d) for module in model.stages.modules()) > 0) == (center < 5)
    assert not any('position_embedding' in name for name in model.state_dict())


def test_gradient_checkpointing_gives_the_same_gradients():
    model = PeLK(**SMALL, out_indices=(3, ))
    twin = PeLK(**SMALL, with_cp=True)
    twin.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 64, 64)
    for net in (model, twin):
        net(x)[0].square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters()):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad)


def test_frozen_stages_stay_in_eval_mode_and_get_no_gradient():
    model = PeLK(**SMALL, frozen_stages=1).train()
    assert not model.stages[0].training
    assert not model.downsample_layers[0].training
    assert model.stages[1].training
    model(torch.rand(2, 3, 64, 64))[0].sum().backward()
    assert all(p.grad is None for p in model.stages[0].parameters())


@pytest.mark.parametrize('arch, last, expected', [('tiny', 6, dict(first=3, middle=4, final=5)),
                                                  ('small', 12, dict(first=3, middle=4, final=11))])
def test_layer_depth_layer_wise(arch, last, expected):
    with torch.device('meta'):
        model = PeLK(arch)
    depth = lambda name: model.get_layer_depth('backbone.' + name, 'backbone.')[0]  # noqa: E731
    blocks = len(model.stages[2].blocks)
    assert depth('downsample_layers.0.0.weight') == 0
    assert depth('stages.0.blocks.2.gamma') == depth('stages.0.position_embedding.weight') == 1
    assert depth('downsample_layers.1.0.weight') == depth('stages.1.blocks.0.gamma') == 2
    assert depth('stages.2.blocks.0.gamma') == depth('downsample_layers.2.1.bias') == expected['first']
    assert depth('stages.2.blocks.3.gamma') == expected['middle']
    assert depth(f'stages.2.blocks.{blocks - 1}.gamma') == expected['final']
    assert depth('stages.3.blocks.0.gamma') == depth('downsample_layers.3.1.weight') == last
    assert depth('norm3.weight') == last + 1
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (last + 1, last + 2)


def test_layer_depth_stage_wise():
    with torch.device('meta'):
        model = PeLK('tiny')
    depth = lambda name: model.get_layer_depth(name, stage_wise=True)  # noqa: E731
    assert depth('downsample_layers.3.1.weight') == (0, 8)
    assert [depth(f'stages.{i}.blocks.0.gamma')[0] for i in range(4)] == [1, 2, 3, 4]
    assert depth('norm0.weight') == (7, 8)


def test_tiny_is_one_graph_to_compile_and_export():
    model = randomise(PeLK('tiny'), scale=2).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        eager = model(x)[0]
        # One graph without breaks; the code generator is tested on the small net below, where it takes seconds.
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')(x)[0]
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
        exported = torch.export.export(model, (x, ))
        torch.testing.assert_close(exported.module()(x)[0], eager)
    assert any('peripheral_conv2d' in str(node.target) for node in exported.graph.nodes)


def test_inductor_trains_like_eager():
    torch.compiler.reset()
    model = randomise(PeLK(dict(depths=[1, 1], channels=[16, 24], kernel_sizes=[15, 13]))).eval()
    x = torch.rand(2, 3, 32, 32)
    results = []
    # Compiled first: what eager leaves cached is not there yet.
    for net in (torch.compile(model, fullgraph=True), model):
        model.zero_grad()
        loss = net(x)[0].square().sum()
        loss.backward()
        results.append((loss.detach(), *[p.grad.clone() for p in model.parameters()]))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_mixed_precision_forward_and_backward():
    model = PeLK(**SMALL)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = model(torch.rand(2, 3, 64, 64))[0]
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert isinstance(model.stages[0].blocks[0].mixer.mixer.large, PeripheralConv2d)
