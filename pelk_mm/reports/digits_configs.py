"""Scale the configs of ablations to the built-in data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

import pelk_mm

from ..analysis import build_model

CONFIGS = Path(pelk_mm.__file__).parent / '.mim' / 'configs'
# By toolbox: the config whose data, small model and optimiser are taken, and how long it is trained, so that a table of
# six classifiers, or of four and their segmentors, is done in half an hour on two CPU cores.
DIGITS = dict(
    mmpretrain=('digits/pelk-atto_1xb64_digits.py', 'max_epochs', 8),
    mmseg=('digits/pelk-atto_upernet_1xb8-1600it_digits-128x128.py', 'max_iters', 250))
IMAGENET_IMAGES, IMAGENET_SIDE = 1_281_167, 224
DIGITS_IMAGES, DIGITS_SIDE = 5000, 64
# No kernel is cut below this: it holds a centre of 7, and stripes of width 5 must be longer than wide.
SMALLEST_KERNEL = 7


def scale_config_to_digits(cfg: Config) -> Config:
    """Scale the config of an ablation to the data that ``tools/dataset_converters/digit_scenes.py`` makes.

    The network of the row stays: the kind of backbone, the grids, the width factor, the branches, the
    embedding and the sparsity, with as many updates of the masks as the row's training has. From the digits' own config
    come depths and base widths, data, optimiser and schedule; training is shorter, there is no validation in between,
    no averaging of weights (the averages of so few steps would be those of the start), and the seed is fixed.

    Kernels are cut to ``2 * map - 1`` taps, as taps that reach beyond the other side of the map meet only padding and
    cannot be trained. So in classification the network computes the same as the row's.
    Image side = 64 x (row's side / 224).

    Args:
        cfg (Config): A PeLK or SLaK classifier for ImageNet, or a segmentor with such a backbone. It is not changed.

    Returns:
        Config: A complete config.

    Raises:
        ValueError: If it is neither.
    """
    scope = cfg.get('default_scope')
    if scope not in DIGITS:
        raise ValueError(f'an ablation must be a config of {" or ".join(DIGITS)} to run on digits, got {scope}')
    path, unit, length = DIGITS[scope]
    small = Config.fromfile(CONFIGS / path)
    side = DIGITS_SIDE
    if scope == 'mmpretrain':
        crop = next(step.scale for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomResizedCrop')
        # A multiple of the stride of stage 3.
        side = round(DIGITS_SIDE * crop / IMAGENET_SIDE / 16) * 16
    backbone = {key: value for key, value in cfg.model.backbone.items() if key not in ('grids', 'center', 'base')}
    backbone.update({key: value for key, value in small.model.backbone.items() if key != 'type'})
    backbone['kernel_sizes'] = _cut_kernels(_build(cfg.model.backbone, scope), side)
    small.model.backbone = backbone
    channels = list(_build(backbone, scope).channels)
    if scope == 'mmpretrain':
        small.model.head.in_channels = channels[-1]
        if side != DIGITS_SIDE:
            for loader in (small.train_dataloader, small.test_dataloader):
                loader.dataset.pipeline.insert(-1, ConfigDict(type='Resize', scale=side))
    else:
        small.model.decode_head.in_channels = channels
        small.model.auxiliary_head.in_channels = channels[small.model.auxiliary_head.in_index]

    for scheduler in small.param_scheduler:
        if scheduler.end == small.train_cfg[unit]:
            scheduler.end = length
    small.train_cfg = {'type': cfg.train_cfg.type, unit: length}
    small.val_cfg = small.val_dataloader = small.val_evaluator = None
    if unit == 'max_iters':
        small.default_hooks.checkpoint.interval = length // 2
    small.custom_hooks = [
        _scale_updates(hook, small, cfg) for hook in cfg.get('custom_hooks', [])
        if hook.type == 'pelk_mm.DynamicSparsityHook'
    ]
    small.randomness = dict(seed=0)
    return small


def _build(backbone: dict, scope: str) -> Any:
    return build_model(Config(dict(model=backbone, default_scope=scope)))


def _cut_kernels(backbone: Any, side: int) -> list:
    """Return the kernel of each stage, or its half grid, without taps that images of ``side`` pixels cannot train."""
    longest = [max(2 * (side // stride) - 1, SMALLEST_KERNEL) for stride in (4, 8, 16, 32)]
    if hasattr(backbone, 'grids'):
        return [_cut(grid.half, size // 2) for grid, size in zip(backbone.grids, longest)]
    return [min(sizes) for sizes in zip(backbone.kernel_sizes, longest)]


def _cut(half: Sequence[int], reach: int) -> list[int]:
    """Return the half grid up to ``reach`` taps from the middle."""
    cut, rest = [half[-1]], reach - half[-1] // 2
    for width in half[-2::-1]:
        if rest > 0:
            cut.append(min(width, rest))
            rest -= width
    return cut[::-1]


def _scale_updates(hook: dict, small: Config, cfg: Config) -> dict:
    """Return the hook with as many updates of the masks in the short training as it has in the long one."""
    hook = copy.deepcopy(hook)
    if hook.get('update_interval'):
        steps = small.train_cfg.max_epochs * DIGITS_IMAGES / small.train_dataloader.batch_size
        long = cfg.train_cfg.max_epochs * IMAGENET_IMAGES / cfg.auto_scale_lr.base_batch_size
        hook['update_interval'] = max(1, round(hook['update_interval'] * steps / long))
    return hook
