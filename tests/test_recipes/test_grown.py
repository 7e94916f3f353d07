"""The configs of a grown ConvNeXt: their backbones hold its weights, everything else is its recipe's."""

from functools import cache
from pathlib import Path

import pytest
from torch import nn

from pelk_mm.analysis.model_building import build_model
from pelk_mm.nets import convnext_state_dict, grown_state_dict

from ..helpers.config_tree import ROOT, load

GROWN = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs/grown').glob('*.py'))
# What a net must be to hold a ConvNeXt.
OF_A_CONVNEXT = dict(center=7, conv_ratio=1.0, width_factor=1.0, small_kernel=None, branch_norm_cfg=None,
                     position_embedding=False)


@cache
def mmpretrain_convnext(size: str) -> nn.Module:
    from mmpretrain.models import ConvNeXt
    return ConvNeXt(size)


@pytest.mark.parametrize('name', GROWN)
def test_grown_backbone_holds_every_weight_of_a_convnext(name):
    """Widths and depths are ConvNeXt's, so that what the converter writes fits; heads and schedule are its recipe's."""
    cfg = load(name)
    size = next(size for size in ('tiny', 'small', 'base') if f'-{size}_' in name)
    backbone = cfg.model.backbone
    assert {key: backbone[key] for key in OF_A_CONVNEXT} == OF_A_CONVNEXT
    net = build_model(cfg).backbone
    convnext = mmpretrain_convnext(size)
    assert net.depths == tuple(convnext.depths)
    weights = convnext_state_dict(convnext)
    shapes = {key: value.shape for key, value in grown_state_dict(net, weights.backbone)[0].items()}
    assert shapes == {key: value.shape for key, value in net.state_dict().items()}
    if 'in1k' in name:
        assert cfg.load_from == f'checkpoints/pelk-convnext-{size}.pth'
        assert cfg.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.8
        return
    assert backbone.init_cfg == dict(
        type='pelk_mm.PretrainedBackbone', checkpoint=f'checkpoints/pelk-convnext-{size}.pth')
    task = 'ade20k' if 'ade20k' in name else 'coco'
    baseline = load(f'configs/baselines/{task}/{Path(name).name.replace("pelk-", "")}')
    for key in ('train_dataloader', 'val_dataloader', 'train_cfg', 'param_scheduler', 'auto_scale_lr'):
        assert cfg[key] == baseline[key], key
    assert {key: value for key, value in cfg.model.items() if key != 'backbone'} == {
        key: value for key, value in baseline.model.items() if key != 'backbone'}
    assert backbone.drop_path_rate == baseline.model.backbone.drop_path_rate
