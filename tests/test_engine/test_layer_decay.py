"""Layer-wise learning-rate decay: the rate of each depth, on any backbone under any name."""

import logging

import pytest
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn

from pelk_mm.models import PeLK

# The depths of the paper's models; the widths do not matter here.
NARROW = dict(channels=(8, 8, 8, 8), kernel_sizes=(9, 9, 9, 9))
TINY, SMALL = dict(depths=(3, 3, 9, 3), **NARROW), dict(depths=(3, 3, 27, 3), **NARROW)
NO_DECAY = dict(
    norm_decay_mult=0.0,
    bias_decay_mult=0.0,
    flat_decay_mult=0.0,
    custom_keys={'.position_embedding': dict(decay_mult=0.0)})


class Holder(nn.Module):
    """A model that keeps its backbone at ``path``, beside a head."""

    def __init__(self, backbone: nn.Module, path: str = 'backbone') -> None:
        super().__init__()
        first, *rest = path.split('.')
        for name in reversed(rest):
            backbone = nn.ModuleDict({name: backbone})
        self.add_module(first, backbone)
        self.head = nn.Linear(8, 4)


def build(model, optimizer=None, **paramwise):
    cfg = dict(
        optimizer=optimizer or dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor='pelk_mm.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=paramwise)
    return build_optim_wrapper(model, cfg)


def settings_by_name(model, wrapper):
    """Learning rate, weight decay and depth of every parameter by its name."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: (group['lr'], group['weight_decay'], group['layer_id'])
        for group in wrapper.optimizer.param_groups for param in group['params']
    }


@pytest.mark.parametrize('path', ['backbone', 'image_encoder', 'student.net.encoder'])
@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
@pytest.mark.parametrize('arch', [TINY, SMALL], ids=['T', 'S'])
def test_rates_by_depth(arch, decay_type, path):
    """For depths that are worked out by hand in the tests of PeLK."""
    backbone = PeLK(arch)
    model = Holder(backbone, path)
    settings = settings_by_name(model, build(model, layer_decay_rate=0.7, decay_type=decay_type))
    assert settings.keys() == {name for name, _ in model.named_parameters()}
    for name, _ in backbone.named_parameters():
        depth, number = backbone.get_layer_depth(name, '', decay_type == 'stage_wise')
        assert settings[f'{path}.{name}'] == pytest.approx((0.7**(number - 1 - depth), 0.05, depth))
    assert settings['head.weight'] == (1.0, 0.05, number - 1)


@pytest.mark.parametrize('arch, decay_type, groups', [(TINY, 'layer_wise', 16), (TINY, 'stage_wise', 12),
                                                      (SMALL, 'layer_wise', 28), (SMALL, 'stage_wise', 12)])
def test_few_groups(arch, decay_type, groups):
    """Two groups a depth, with and without weight decay: 8 depths of T and 14 of S, or stem, four stages and head."""
    model = Holder(PeLK(arch))
    wrapper = build(model, layer_decay_rate=0.9, decay_type=decay_type, **NO_DECAY)
    assert len(wrapper.optimizer.param_groups) == groups
    depths = [group['layer_id'] for group in wrapper.optimizer.param_groups]
    assert depths == sorted(depths)
    for group in wrapper.optimizer.param_groups:
        assert group['lr'] == pytest.approx(group['lr_scale'])


def test_weight_decay_of_the_paper():
    """Nothing of one dimension decays, nor does the positional embedding, which has three."""
    model = Holder(PeLK(TINY))
    settings = settings_by_name(model, build(model, layer_decay_rate=0.9, **NO_DECAY))
    for name, param in model.named_parameters():
        decays = param.ndim > 1 and 'position_embedding' not in name
        assert settings[name][1] == (0.05 if decays else 0.0), name


def test_lr_mult_multiplies_with_the_decay():
    model = Holder(PeLK(TINY))
    wrapper = build(model, layer_decay_rate=0.5, custom_keys={'downsample_layers.0': dict(lr_mult=3.0, decay_mult=2.0)})
    settings = settings_by_name(model, wrapper)
    assert settings['backbone.downsample_layers.0.0.weight'] == pytest.approx((3 * 0.5**7, 0.1, 0))
    assert settings['backbone.stages.0.blocks.0.gamma'] == pytest.approx((0.5**6, 0.05, 1))


def test_frozen_stages_are_left_out():
    model = Holder(PeLK(TINY, frozen_stages=2))
    settings = settings_by_name(model, build(model, layer_decay_rate=0.9))
    assert settings.keys() == {name for name, param in model.named_parameters() if param.requires_grad}
    assert min(depth for _, _, depth in settings.values()) == 3


def test_two_backbones_are_asked_each_for_its_own():
    model = Holder(PeLK(TINY), 'teacher')
    model.student = PeLK(SMALL)
    settings = settings_by_name(model, build(model, layer_decay_rate=0.9))
    assert settings['teacher.stages.3.blocks.0.gamma'][0] == pytest.approx(0.9)
    assert settings['student.stages.3.blocks.0.gamma'][0] == pytest.approx(0.9)
    assert settings['teacher.downsample_layers.0.0.bias'][0] == pytest.approx(0.9**7)
    assert settings['student.downsample_layers.0.0.bias'][0] == pytest.approx(0.9**13)


def test_backbone_of_mmpretrain_inside_its_classifier():
    """The classifier's own get_layer_depth takes no prefix and must not be mistaken for the backbone's."""
    pretrain = pytest.importorskip('mmpretrain.models')
    arch = dict(depths=[3, 3, 9, 3], channels=[8, 8, 8, 8])
    model = pretrain.ImageClassifier(
        backbone=dict(type='ConvNeXt', arch=arch), head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
    settings = settings_by_name(model, build(model, layer_decay_rate=0.9))
    assert settings['backbone.downsample_layers.0.0.weight'][0] == pytest.approx(0.9**7)
    assert settings['backbone.stages.2.8.gamma'][0] == pytest.approx(0.9**2)
    assert settings['head.fc.weight'][0] == 1.0
    with pytest.raises(ValueError, match='stage_wise.*ConvNeXt.*backbone'):
        build(model, layer_decay_rate=0.9, decay_type='stage_wise')


def test_log_is_one_table(caplog):
    model = Holder(PeLK(TINY))
    logger = MMLogger.get_instance('test_layer_decay', logger_name='test_layer_decay')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        build(model, layer_decay_rate=0.9, **NO_DECAY)
    message, = (record.getMessage() for record in caplog.records)
    assert message.count('\n') == 17
    rows = [line.split() for line in message.splitlines()[2:]]
    assert sum(int(row[4]) for row in rows) == len(list(model.parameters()))
    assert sum(int(row[5].replace(',', '')) for row in rows) == sum(param.numel() for param in model.parameters())
    assert not logger.filters


@pytest.mark.parametrize('paramwise, optimizer, message', [
    (dict(flat_decay_mult=0.0), None, 'layer_decay_rate must be a number in .0, 1., got None'),
    (dict(layer_decay_rate=1.2), None, 'got 1.2'),
    (dict(layer_decay_rate=0.9, decay_type='blockwise'), None, "decay_type must be one of .*got 'blockwise'"),
    (dict(layer_decay_rate=0.9), dict(type='AdamW'), 'the optimizer must set lr'),
])
def test_wrong_settings(paramwise, optimizer, message):
    with pytest.raises(ValueError, match=message):
        build(Holder(PeLK(TINY)), optimizer, **paramwise)


def test_model_without_depths():
    with pytest.raises(ValueError, match='get_layer_depth.*Holder holds none'):
        build(Holder(nn.Linear(2, 2)), layer_decay_rate=0.9)
