"""Fine-tuning at 384 px: the start, rates as they come out, and what is kept; docs/recipes.md has every value.

Sources: TRAINING.md of ConvNeXt (ConvNeXt-B from ImageNet-1K, 384x384), README.md of RepLKNet (RepLKNet-31B from
ImageNet-1K, with 384x384), swin_base_patch4_window12_384_finetune.yaml and get_started.md of Swin.
"""

import copy
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch import nn

from pelk_mm.analysis import build_model
from pelk_mm.engine import LayerDecayOptimWrapperConstructor
from pelk_mm.engine.launch import load_config, run
from pelk_mm.engine.optimizers.layer_decay import find_layer_depth

from ..helpers import config_tree
from ..helpers.config_tree import ROOT, optimizer_of

ZEROS = dict(type='pelk_mm.DynamicSparsityHook', init='zeros')
# By config the one for 224 px that it starts from, and the last learning rate, which no key holds.
RECIPES = {
    'imagenet/pelk-base_16xb32-finetune': ('pelk-base_32xb128', 1e-6),
    'imagenet/pelk-base-101_16xb32-finetune': ('pelk-base-101_32xb128', 1e-6),
    'baselines/imagenet/slak-base_16xb32-finetune': ('slak-base_32xb128', 1e-6),
    'baselines/imagenet/convnext-base_16xb32-finetune': ('convnext-base_32xb128', 1e-6),
    'baselines/imagenet/replknet-31b_32xb32-finetune': ('replknet-31b_32xb64', 1e-6),
    # 2e-7 for each 512 images.
    'baselines/imagenet/swin-base_16xb64-finetune': ('swin-base_16xb64', 2 * 2e-7),
}
CASES = pytest.mark.parametrize('name', RECIPES)
SPARSE = [name for name in RECIPES if 'pelk' in name or 'slak' in name]


def load(name: str) -> Config:
    return config_tree.load(f'configs/{name}_in1k-384px.py')


@cache
def model_of(name: str) -> nn.Module:
    return build_model(load(name))


def test_every_finetuning_config_is_here():
    files = (ROOT / 'configs').glob('**/*finetune_in1k-384px.py')
    assert {str(file.relative_to(ROOT / 'configs')).removesuffix('_in1k-384px.py') for file in files} == set(RECIPES)


@CASES
def test_start_and_hooks(name):
    cfg = load(name)
    assert cfg.train_cfg.type == 'pelk_mm.ResumableEpochBasedTrainLoop'
    assert cfg.model.head.loss.type == 'LabelSmoothLoss'
    assert cfg.load_from == f'work_dirs/{RECIPES[name][0]}_in1k/epoch_300.pth'
    raw = dict(type='pelk_mm.LoadWeightsHook', weights='raw')
    averaging = dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')
    windows = dict(type='pelk_mm.ResizePositionBiasHook')
    hooks = [raw] * ('swin' not in name)
    hooks += [averaging] * ('replknet' in name) + [ZEROS] * (name in SPARSE) + [windows] * ('swin' in name)
    assert cfg.custom_hooks == hooks


@CASES
def test_images(name):
    """RandAugment and random erasing are kept; tests squeeze the complete image."""
    cfg = load(name)
    assert [step.type for step in cfg.train_dataloader.dataset.pipeline] == [
        'LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'RandAugment', 'RandomErasing', 'PackInputs'
    ]
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline[1:-1]] == ['Resize']


@CASES
def test_starts_from_the_config_for_224_px(name):
    """Its model has the same parameters, except the sizes of Swin's tables of positions."""
    plain = build_model(config_tree.load(f'configs/{Path(name).parent}/{RECIPES[name][0]}_in1k.py')).state_dict()
    tuned = model_of(name).state_dict()
    assert plain.keys() == tuned.keys()
    different = [key for key in plain if plain[key].shape != tuned[key].shape]
    assert all('relative_position' in key for key in different)
    assert bool(different) == ('swin' in name)


@CASES
def test_course_of_the_rates(name):
    """By hand, for the first layers and the head: the cosine scaled by the decay, linear before it from 0.001."""
    cfg, last_lr, steps = load(name), RECIPES[name][1], 4
    optimizer = optimizer_of(cfg, model_of(name))
    schedulers = []
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for scheduler in copy.deepcopy(cfg.param_scheduler):
            assert scheduler.pop('convert_to_iter_based')
            cls = PARAM_SCHEDULERS.get(scheduler.pop('type'))
            schedulers.append(cls.build_iter_from_epoch(optimizer=optimizer, epoch_length=steps, **scheduler))
    lowest, highest = (choose(group['initial_lr'] for group in optimizer.param_groups) for choose in (min, max))
    lr, decay = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.get('layer_decay_rate', 1)
    assert highest == lr
    # Thirteen steps lie between the stem and the head.
    assert lowest == pytest.approx(lr * decay**13)
    warmup = sum(part.end for part in cfg.param_scheduler if part.type == 'LinearLR') * steps
    total = 30 * steps
    for step in range(total):
        for group in optimizer.param_groups:
            share = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
            expected = last_lr / lr * (1 - share) + share
            if step >= warmup:
                assert group['lr'] == pytest.approx(expected * group['initial_lr'], rel=1e-5), step
            elif step == 0:
                assert group['lr'] == pytest.approx(1e-3 * group['initial_lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    for group in optimizer.param_groups:
        assert group['lr'] == pytest.approx(group['initial_lr'] * last_lr / lr, rel=0.1)


# By hand after get_num_layer_for_replknet: the name and its group.
REPLKNET_DEPTHS = [
    ('stem.0.conv.weight', 0), ('stages.0.blocks.0.pw1.conv.weight', 1), ('stages.0.blocks.3.pw2.conv.weight', 1),
    ('transitions.0.1.conv.weight', 1), ('stages.1.blocks.2.pw1.conv.weight', 2), ('transitions.1.0.conv.weight', 2),
    ('stages.2.blocks.3.pw1.conv.weight', 3), ('stages.2.blocks.4.pw1.conv.weight', 4),
    ('stages.2.blocks.35.pw1.conv.weight', 11), ('transitions.2.0.conv.weight', 11),
    ('stages.3.blocks.0.pw1.conv.weight', 12), ('norm.weight', 13)
]  # yapf: disable


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_depths_of_replknet(prefix):
    backbone = model_of('baselines/imagenet/replknet-31b_32xb32-finetune').backbone
    depth = find_layer_depth(backbone)
    for name, group in REPLKNET_DEPTHS:
        assert depth(prefix + name, prefix) == (group, 14), name


def test_depths_of_other_replknets():
    """Another depth, norms of intermediate features, and stage-wise decay, which its authors do not have."""
    arch = dict(large_kernel_sizes=[5] * 4, layers=[1, 1, 3, 1], channels=[8] * 4, small_kernel=3, dw_ratio=1)
    model = build_model(Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier',
        backbone=dict(type='RepLKNet', arch=arch, out_indices=(0, 3), norm_intermediate_features=True),
        head=dict(type='LinearClsHead', num_classes=2, in_channels=8)))))  # yapf: disable
    found = {name: find_layer_depth(model.backbone)(name) for name, _ in model.backbone.named_parameters()}
    # Six blocks make two groups.
    assert {number for _, number in found.values()} == {3 + 2 + 2}
    assert found['stages.2.blocks.5.pw1.conv.weight'] == (4, 7)
    assert found['stages.3.blocks.0.pw1.conv.weight'] == (5, 7)
    assert found['stages.0.norm.weight'] == (6, 7)
    options = dict(layer_decay_rate=0.7, decay_type='stage_wise')
    with pytest.raises(ValueError, match='that of RepLKNet'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=1.0)), options)(model)


SMALL = {
    'imagenet/pelk-base_16xb32-finetune': (249, dict(arch='atto', kernel_sizes=[7] * 4)),
    'baselines/imagenet/slak-base_16xb32-finetune': (249, dict(arch='atto', kernel_sizes=[7] * 4)),
    'baselines/imagenet/convnext-base_16xb32-finetune': (320, dict(arch='atto')),
    'baselines/imagenet/replknet-31b_32xb32-finetune': (256, dict(arch=dict(
        large_kernel_sizes=[5] * 4, layers=[1] * 4, channels=[256] * 4, small_kernel=3, dw_ratio=1))),
    'baselines/imagenet/swin-base_16xb64-finetune': (768, dict(arch='tiny'))
}  # yapf: disable


@pytest.mark.parametrize('name', SMALL)
def test_a_new_head(name):
    """Of the size that head_init_scale asks for, where the source sets it; the backbone starts as always."""
    cfg = copy.deepcopy(load(name))
    cfg.model.head.in_channels, backbone = SMALL[name]
    cfg.model.backbone.update(backbone)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    std = 0.02 if 'swin' in name or 'replknet' in name else 0.001 * 0.02
    assert model.head.fc.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not model.head.fc.bias.any()
    assert next(p for p in model.backbone.parameters() if p.ndim == 4).std() > 0.01
    assert bool(model.data_preprocessor.batch_augments) == ('swin' in name)


def test_the_checkpoint_is_asked_for(tmp_path, monkeypatch):
    """Without it nothing is trained, and the error names the entry of the config."""
    monkeypatch.chdir(tmp_path)
    cfg = load_config(str(ROOT / 'configs/imagenet/pelk-base_16xb32-finetune_in1k-384px.py'), None)
    cfg.work_dir, cfg.model.backbone.arch, cfg.model.head.in_channels = str(tmp_path / 'out'), 'atto', 249
    message = 'load_from: no such file, work_dirs/pelk-base_32xb128_in1k/epoch_300.pth$'
    with pytest.raises(FileNotFoundError, match=message):
        run(cfg, 'train')
