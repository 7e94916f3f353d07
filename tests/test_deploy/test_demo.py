"""The demo draws and describes what heads of every kind predict, for images of any number of channels."""

import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from pelk_mm.analysis import build_model
from pelk_mm.deploy.demo import Drawer, ModelDemo
from pelk_mm.testing.tiny_models import CLASSES, randomise, tiny_config, write_pictures

FCN = dict(type='FCNHead', channels=8, num_convs=1, concat_input=False, in_channels=16, in_index=3, num_classes=4)


def classifier(**head):
    cfg = tiny_config('classification')
    cfg.model.head = dict(in_channels=16, **head)
    return cfg


def segmentor(**head):
    cfg = tiny_config('segmentation')
    cfg.model.pop('auxiliary_head')
    cfg.model.decode_head = dict(FCN, **head)
    return cfg


def panoptic(instance_on=False):
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
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(mean=[120.0], std=[60.0])
    if cfg.default_scope == 'mmdet':
        cfg.model.data_preprocessor.bgr_to_rgb = False
    cfg.test_dataloader.dataset.pipeline[0].color_type = {1: 'grayscale', 4: 'unchanged'}[channels]
    return cfg


NAMES = '|'.join(CLASSES)
SHARES = rf'((^|, )({NAMES}) \d+ %)+'
CASES = {
    'binary segmentor': (lambda: segmentor(
        num_classes=2, out_channels=1, threshold=0.79, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),
        r'ant \d+ %, bee \d+ %'),
    'multi-label': (lambda: classifier(type='MultiLabelLinearClsHead', num_classes=4, topk=2),
                    rf'({NAMES}) \(0.\d+\), ({NAMES}) \(0.\d+\)'),
    'no label': (lambda: classifier(type='MultiLabelLinearClsHead', num_classes=4, thr=0.999), 'no label'),
    'several tasks': (lambda: classifier(type='MultiTaskHead', task_heads=dict(
        kind=dict(type='LinearClsHead', num_classes=4),
        marks=dict(type='MultiLabelLinearClsHead', num_classes=3, topk=2))),
        r'kind: \d \(0.\d+\); marks: \d \(0.\d+\), \d \(0.\d+\)'),
    'panoptic': (panoptic, SHARES),
    'grey': (lambda: with_channels(tiny_config('classification'), 1), rf'({NAMES}) \(0.\d+\)'),
    'four channels': (lambda: with_channels(segmentor(), 4), SHARES),
    'grey detector': (lambda: with_channels(tiny_config('detection'), 1), rf'(({NAMES}) \(\d.\d+\)(, |$))+'),
}


def write_model(cfg, folder, classes=CLASSES):
    """Config and checkpoint, whose meta data hold the names of the classes, if there are any."""
    torch.save(dict(meta=dict(dataset_meta=dict(classes=classes)) if classes else {},
                    state_dict=randomise(build_model(cfg, 'cpu')).state_dict()), folder / 'weights.pth')
    return str(folder / 'weights.pth')


@pytest.mark.parametrize('case', CASES)
def test_every_head_is_drawn(case, tmp_path):
    build, expected = CASES[case]
    cfg = build()
    file = write_pictures(tmp_path, 1) / '0.png'
    if case == 'four channels':
        picture = cv2.imread(str(file))
        cv2.imwrite(str(file), np.dstack([picture, picture[..., 0]]))
    demo = ModelDemo(cfg, write_model(cfg, tmp_path), 'cpu', score_thr=0)
    image = demo.pipeline.load(file)
    drawn, found = demo(image)
    assert re.fullmatch(expected, found), found
    assert (drawn.shape, drawn.dtype) == ((384, 480, 3), np.uint8)
    assert np.abs(drawn[..., ::-1].astype(int) - cv2.resize(cv2.imread(str(file)), (480, 384))).max() > 50


def test_images_of_other_channels_are_refused_or_converted(tmp_path):
    cfg = with_channels(tiny_config('classification'), 1)
    demo = ModelDemo(cfg, write_model(cfg, tmp_path), 'cpu')
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    assert demo(picture)[1] == demo(grey)[1]
    with pytest.raises(ValueError, match='image has 5 channels, and the model takes 1'):
        demo(np.zeros((64, 64, 5), np.uint8))


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_classes_without_names_and_colours_are_drawn(scope):
    from mmdet.structures import DetDataSample
    from mmseg.structures import SegDataSample
    image = np.full((384, 384, 3), 100, np.uint8)
    labels = torch.zeros(1, 384, 384)
    labels[:, 200:] = 5
    if scope == 'mmseg':
        sample, expected = SegDataSample(pred_sem_seg=PixelData(data=labels)), 'one 52 %, 5 48 %'
    else:
        sample = DetDataSample(pred_instances=InstanceData(
            bboxes=torch.tensor([[9.0, 9.0, 200.0, 200.0]]), labels=torch.tensor([5]), scores=torch.tensor([0.5])))
        expected = '5 (0.50)'
    drawn, found = Drawer(scope, ['one'], [(255, 0, 0)])(image, sample)
    assert found == expected
    assert not np.array_equal(drawn, image[..., ::-1])


def test_places_of_panoptic_and_semantic_maps_grow_with_the_image():
    from mmdet.structures import DetDataSample
    ids = torch.full((1, 64, 96), 2)
    # Instances 1 and 2 of class 0; what belongs to no class is class 3, which is not drawn.
    ids[:, :32, :48], ids[:, :32, 48:], ids[:, 60:] = 1000, 2000, 3
    sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=ids))
    image = np.full((64, 96, 3), 100, np.uint8)
    drawn, found = Drawer('mmdet', None, None, num_classes=3)(image, sample)
    assert drawn.shape == (384, 576, 3)
    assert found == '0 50 %, 2 44 %'
    assert np.abs(drawn[-10:].astype(int) - 100).max() == 0
    assert np.abs(drawn[250:340].astype(int) - 100).min(-1).max() > 10
