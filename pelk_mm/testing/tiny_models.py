"""Configs and checkpoints of tiny models of every task, with random weights that make mistakes visible."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from ..analysis import build_model
from .random_weights import randomise

CLASSES = ('ant', 'bee', 'cat', 'dog')
PALETTE = [(220, 40, 40), (40, 200, 40), (60, 60, 240), (240, 200, 40)]

_BACKBONE = dict(
    type='pelk_mm.PeLK',
    arch=dict(depths=(1, 1, 1, 1), channels=(8, 8, 16, 16), kernel_sizes=([3, 1, 1], [2, 1, 1], [2, 1, 1], [1, 1, 1])),
    width_factor=1.0,
    small_kernel=3,
    layer_scale_init_value=1.0)
_DENSE = dict(_BACKBONE, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
_NORMALISATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
_BN = dict(type='BN', requires_grad=True)
_ANCHORS = dict(type='AnchorGenerator', ratios=[1.0], scales=[4], strides=[4, 8, 16, 32])
_BOXES = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
_NMS = dict(type='nms', iou_threshold=0.5)
_FPN = dict(type='FPN', in_channels=[8, 8, 16, 16], out_channels=8, num_outs=4, norm_cfg=_BN)
_DETECTION = dict(
    data_preprocessor=dict(type='DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=32, **_NORMALISATION),
    backbone=_DENSE,
    neck=_FPN)

_MODELS: dict[str, dict] = dict(
    classification=dict(
        type='ImageClassifier',
        data_preprocessor=dict(_NORMALISATION, num_classes=4, to_rgb=True),
        backbone=_BACKBONE,
        head=dict(type='LinearClsHead', in_channels=16, num_classes=4, loss=dict(type='CrossEntropyLoss'))),
    segmentation=dict(
        type='EncoderDecoder',
        # BGR, as pipelines load it.
        data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=False, size=(64, 64), **_NORMALISATION),
        backbone=_DENSE,
        decode_head=dict(
            type='UPerHead',
            in_channels=[8, 8, 16, 16],
            in_index=[0, 1, 2, 3],
            # One bin, and bins of unequal sizes.
            pool_scales=(1, 3),
            channels=8,
            num_classes=4,
            norm_cfg=_BN,
            align_corners=False),
        auxiliary_head=dict(
            type='FCNHead',
            in_channels=16,
            in_index=2,
            num_convs=1,
            concat_input=False,
            channels=8,
            num_classes=4,
            norm_cfg=_BN,
            align_corners=False),
        test_cfg=dict(mode='whole')),
    detection=dict(
        _DETECTION,
        type='FasterRCNN',
        train_cfg=None,
        rpn_head=dict(type='RPNHead', in_channels=8, feat_channels=8, anchor_generator=_ANCHORS, bbox_coder=_BOXES),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
                out_channels=8,
                featmap_strides=[4, 8, 16, 32]),
            bbox_head=dict(
                type='Shared4Conv1FCBBoxHead',
                in_channels=8,
                conv_out_channels=8,
                fc_out_channels=16,
                roi_feat_size=7,
                num_classes=4,
                bbox_coder=_BOXES,
                norm_cfg=_BN)),
        test_cfg=dict(
            rpn=dict(nms_pre=20, max_per_img=20, nms=_NMS, min_bbox_size=0),
            rcnn=dict(score_thr=0.0, nms=_NMS, max_per_img=10))),
    one_stage_detection=dict(
        _DETECTION,
        type='RetinaNet',
        bbox_head=dict(
            type='RetinaHead',
            num_classes=4,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=_ANCHORS,
            bbox_coder=_BOXES),
        test_cfg=dict(nms_pre=20, min_bbox_size=0, score_thr=0.0, nms=_NMS, max_per_img=10)),
)

_SCOPES = dict(classification='mmpretrain', segmentation='mmseg', detection='mmdet', one_stage_detection='mmdet')
_DATASETS: dict[str, dict] = dict(
    mmpretrain=dict(type='CustomDataset', data_root='', data_prefix='nowhere'),
    mmseg=dict(type='BaseSegDataset', metainfo=dict(classes=CLASSES, palette=PALETTE)),
    mmdet=dict(type='CocoDataset', ann_file='nowhere.json', metainfo=dict(classes=CLASSES, palette=PALETTE)))
_PACKING = dict(mmpretrain='PackInputs', mmseg='PackSegInputs', mmdet='PackDetInputs')


def tiny_config(task: str) -> Config:
    """Return a config that trains nothing and has no data, but a pipeline for testing on images of 64 x 64.

    Args:
        task (str): ``'classification'``, ``'segmentation'``, ``'detection'`` (two stages) or
            ``'one_stage_detection'``.
    """
    scope = _SCOPES[task]
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type=_PACKING[scope])]
    if scope != 'mmpretrain':
        pipeline.insert(2, dict(type='LoadAnnotations'))
    content = dict(
        default_scope=scope,
        custom_imports=dict(imports=['pelk_mm.models'], allow_failed_imports=False),
        custom_hooks=[dict(type='EMAHook')],
        model=_MODELS[task],
        test_cfg=dict(),
        test_dataloader=dict(
            batch_size=1,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(_DATASETS[scope], pipeline=pipeline)))
    if scope != 'mmpretrain':
        kind = dict(mmseg='SegLocalVisualizer', mmdet='DetLocalVisualizer')[scope]
        content['visualizer'] = dict(type=kind, vis_backends=None)
    return Config(copy.deepcopy(content))


def build_tiny_model(cfg: Config) -> nn.Module:
    """Build a config's model in eval mode, every weight and statistic random, so that activations stay near 1."""
    return randomise(build_model(cfg, 'cpu'))


def write_tiny_model(task: str, folder: Path, cfg: Config | None = None) -> tuple[Path, Path]:
    """Write ``<task>.py`` and ``<task>.pth``, a checkpoint as training writes it, of :func:`tiny_config` or ``cfg``."""
    cfg = cfg or tiny_config(task)
    config, checkpoint = folder / f'{task}.py', folder / f'{task}.pth'
    cfg.dump(str(config))
    meta = dict(epoch=3, cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES, palette=PALETTE))
    torch.save(dict(meta=meta, state_dict=build_tiny_model(cfg).state_dict(), optimizer=dict(state={})), checkpoint)
    return config, checkpoint


def write_images(folder: Path, count: int = 3) -> Path:
    """Write ``0.png``, ``1.png``, ... of 64 x 80 (H x W) into a folder, and return it."""
    rng = np.random.default_rng(0)
    for i in range(count):
        blobs = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), cv2.resize(blobs, (80, 64), interpolation=cv2.INTER_CUBIC))
    return folder
