"""Test-time augmentation as the toolboxes' own test tools set it up."""

from __future__ import annotations

import copy

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

# What mmpretrain's and mmdet's own tools/test.py take where a config has no test-time augmentation: flipping. The last
# transform packs; mmdet's gets the keys that its merging of boxes needs.
_MODELS: dict[str, dict] = dict(
    mmpretrain=dict(type='mmpretrain.AverageClsScoreTTA'),
    mmdet=dict(type='mmdet.DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)))
_PACKING: dict[str, dict] = dict(
    mmpretrain=dict(),
    mmdet=dict(
        type='mmdet.PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')))


def use_tta(cfg: Config) -> None:
    """Let the config's test-time augmentation, or its toolbox's default, wrap the model and the innermost pipeline.

    Args:
        cfg (Config): Changed in place: ``model``, ``tta_model``, ``tta_pipeline`` and the pipeline to test with.

    Raises:
        ValueError: If the config has no ``tta_model`` or no ``tta_pipeline``, and its toolbox no default, as mmseg.
    """
    scope = cfg.get('default_scope')
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing and scope not in _MODELS:
        raise ValueError(f'--tta needs tta_model and tta_pipeline in the config, missing: {", ".join(missing)}')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if missing:
        print_log(f'--tta: the config has no {" and no ".join(missing)}: flipping, the default of {scope}.', 'current')
    if 'tta_model' not in cfg:
        cfg.tta_model = copy.deepcopy(_MODELS[scope])
    if 'tta_pipeline' not in cfg:
        *steps, packing = copy.deepcopy(dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        packing = _PACKING[scope] or packing
        cfg.tta_pipeline = [*steps, dict(type='TestTimeAug', transforms=[flips, [packing]])]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
