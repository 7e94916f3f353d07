"""Configs of tiny models with heads of many kinds, and images for them."""

from __future__ import annotations

import cv2
import numpy as np

from pelk_mm.testing.tiny_models import tiny_config, write_images

FCN = dict(type='FCNHead', channels=8, num_convs=1, concat_input=False, in_channels=16, in_index=3, num_classes=4)
# As mmsegmentation's FAQ has it.
BINARY = dict(num_classes=2, out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))


def segmentor(decode_head=None, **model):
    """With one FCN head, of which some arguments change, or a list of heads."""
    cfg = tiny_config('segmentation')
    cfg.model.pop('auxiliary_head')
    cfg.model.update(model)
    cfg.model.decode_head = decode_head if isinstance(decode_head, list) else dict(FCN, **(decode_head or {}))
    return cfg


def classifier(**head):
    """With another head."""
    cfg = tiny_config('classification')
    cfg.model.head = dict(in_channels=16, **head)
    return cfg


def binary(threshold):
    return segmentor(dict(BINARY, threshold=threshold))


def sliding(**head):
    """A segmentor that slides windows of 64 over images of 96 x 144."""
    cfg = segmentor(head, test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(40, 40)))
    cfg.test_dataloader.dataset.pipeline[1].scale = (144, 96)
    return cfg


def padded(cfg):
    """Keep the ratio of the sides, and pad them to multiples of 32; RGB."""
    cfg.model.data_preprocessor.update(bgr_to_rgb=True, test_cfg=dict(size_divisor=32))
    cfg.test_dataloader.dataset.pipeline[1].update(scale=(100, 70), keep_ratio=True)
    return cfg


def cascade():
    """A segmentor of two heads, the second of which takes what the first predicts."""
    ocr = dict(FCN, type='OCRHead', ocr_channels=8)
    del ocr['num_convs'], ocr['concat_input']
    return segmentor([FCN, ocr], type='CascadeEncoderDecoder', num_stages=2)


def several_tasks():
    """Labels of one task, and of another that is nested."""
    marks = dict(type='MultiLabelLinearClsHead', num_classes=3, topk=2)
    return classifier(type='MultiTaskHead', task_heads=dict(
        kind=dict(type='LinearClsHead', num_classes=4),
        more=dict(type='MultiTaskHead', task_heads=dict(marks=marks))))  # yapf: disable


def panoptic():
    """Two things and two kinds of stuff."""
    cfg = tiny_config('detection')
    model = cfg.model.to_dict()
    model['roi_head']['bbox_head'].update(num_classes=2)
    model['roi_head'].update(
        mask_roi_extractor=dict(model['roi_head']['bbox_roi_extractor'], roi_layer=dict(
            type='RoIAlign', output_size=14, sampling_ratio=0)),
        mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=8, num_classes=2))
    model['test_cfg']['rcnn'].update(mask_thr_binary=0.5)
    model['test_cfg']['panoptic'] = dict(
        score_thr=0.1, max_per_img=10, mask_thr_binary=0.5, mask_overlap=0.5, nms=dict(type='nms', iou_threshold=0.5),
        stuff_area_limit=16)
    model.update(
        type='PanopticFPN',
        semantic_head=dict(
            type='PanopticFPNHead', num_things_classes=2, num_stuff_classes=2, in_channels=8, inner_channels=8,
            norm_cfg=dict(type='BN')),
        panoptic_fusion_head=dict(type='HeuristicFusionHead', num_things_classes=2, num_stuff_classes=2))
    cfg.model = model
    return cfg


def with_channels(cfg, channels):
    """Take images of 1 or 4 channels."""
    cfg.model.backbone.in_channels = channels
    # Of other numbers than 1 and 3 mmseg and mmdet take no mean for each.
    cfg.model.data_preprocessor.update(mean=[120.0], std=[60.0])
    if cfg.default_scope == 'mmdet':
        cfg.model.data_preprocessor.bgr_to_rgb = False
    cfg.test_dataloader.dataset.pipeline[0].color_type = {1: 'grayscale', 4: 'unchanged'}[channels]
    return cfg


def write_images_for(cfg, folder):
    """Write two images with as many channels as the model takes, and return their folder."""
    images = write_images(folder, 2)
    for file in images.iterdir():
        if cfg.model.backbone.get('in_channels') == 4:
            image = cv2.imread(str(file))
            cv2.imwrite(str(file), np.dstack([image, image[..., 0]]))
    return images
