"""Heads of every kind decide, and are drawn, from an exported network's outputs as from the model's own."""

import ast
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData, PixelData

from pelk_mm.analysis import build_model
from pelk_mm.analysis.model_building import build_without_weights
from pelk_mm.deploy import EvalImages, ImageModel, OnnxModel, Predictions, describe, image_loader, task_of
from pelk_mm.deploy.demo import Drawer, ExportedDemo, ModelDemo
from pelk_mm.deploy.inference import exported_network, predict
from pelk_mm.testing.tiny_models import (
    CLASSES,
    PALETTE,
    build_tiny_model,
    tiny_config,
    write_images,
    write_tiny_model,
)

from ..helpers.tiny_heads import (
    binary,
    cascade,
    classifier,
    padded,
    panoptic,
    segmentor,
    several_tasks,
    sliding,
    with_channels,
    write_images_for,
)
from ..helpers.toy_files import write_onnx_stub

META = dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE))
FILE = Path(__file__).parent / 'files/binary_segmentor_0.1.0.onnx'

NAME = f'({"|".join(CLASSES)})'
SCORED, SHARES = rf'{NAME} \([01]\.\d+\)', rf'((^|, ){NAME} \d+ %)+'
# Config, and a description of what is drawn; exported are classifiers and segmentors.
CASES = {
    'binary': (lambda: binary(0.79), r'ant \d+ %, bee \d+ %'),
    'binary, low threshold': (lambda: binary(0.3), None),
    'sliding': (sliding, None),
    'padded, RGB': (lambda: padded(segmentor()), None),
    'padded sliding, align_corners': (lambda: padded(sliding(align_corners=True)), None),
    'cascade': (cascade, None),
    'multi-label, threshold': (lambda: classifier(type='MultiLabelLinearClsHead', num_classes=4, thr=0.45), None),
    'multi-label, topk': (
        lambda: classifier(type='MultiLabelLinearClsHead', num_classes=4, topk=2), f'{SCORED}, {SCORED}'),
    'no label': (lambda: classifier(type='MultiLabelLinearClsHead', num_classes=4, thr=0.999), 'no label'),
    'several tasks': (several_tasks, r'kind: \d \(0.\d+\); more: marks: \d \(0.\d+\), \d \(0.\d+\)'),
    'grey classifier': (lambda: with_channels(tiny_config('classification'), 1), SCORED),
    'segmentor of four channels': (lambda: with_channels(segmentor(), 4), SHARES),
    'panoptic': (panoptic, SHARES),
    'grey detector': (lambda: with_channels(tiny_config('detection'), 1), f'({SCORED}(, |$))+'),
}
DRAWN = [case for case, (_, description) in CASES.items() if description]


@pytest.mark.parametrize('case', [case for case in CASES if case not in ('panoptic', 'grey detector')])
def test_the_head_in_a_files_metadata_decides_as_the_model(case, tmp_path):
    cfg = CASES[case][0]()
    model, task = build_tiny_model(cfg), task_of(cfg)
    network = ImageModel(model, task).eval()
    description = describe(cfg, META, network.channels)
    rules = build_without_weights(
        Config(dict(model=ast.literal_eval(description['model']), default_scope=description['scope'])))
    assert not list(rules.backbone.parameters())
    found = Predictions()
    for batch in EvalImages(cfg, 2, str(write_images_for(cfg, tmp_path))).batches():
        expected = predict(model, batch)[0]
        with torch.no_grad(), exported_network(rules, task, network, network.channels):
            found.add(expected, predict(rules, batch)[0])
    assert (found.images, found.equal) == (2, found.decisions)
    # Classes of both images, or their pixels.
    assert found.decisions >= (8 if task == 'classification' else 2 * 64 * 80)
    assert found.error < 1e-5
    # Other rules would show.
    if case == 'binary':
        assert 0.2 < expected.pred_sem_seg.data.mean() < 0.8
    if case == 'multi-label, threshold':
        assert 0 < len(expected.pred_label) < 4


@pytest.mark.parametrize('case', DRAWN)
def test_every_head_is_drawn(case, tmp_path):
    build, expected = CASES[case]
    cfg = build()
    file = write_images_for(cfg, tmp_path) / '0.png'
    demo = ModelDemo(cfg, str(write_tiny_model(task_of(cfg), tmp_path, cfg)[1]), 'cpu', score_thr=0)
    drawn, found = demo(demo.pipeline.load(file))
    assert re.fullmatch(expected, found), found
    assert (drawn.shape, drawn.dtype) == ((384, 480, 3), np.uint8)
    assert np.abs(drawn[..., ::-1].astype(int) - cv2.resize(cv2.imread(str(file)), (480, 384))).max() > 50


def test_images_of_other_channels_are_refused_or_converted(tmp_path):
    cfg = with_channels(tiny_config('classification'), 1)
    demo = ModelDemo(cfg, str(write_tiny_model('classification', tmp_path, cfg)[1]), 'cpu')
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert demo(image)[1] == demo(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[1]
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


def test_panoptic_maps_grow_with_the_image():
    from mmdet.structures import DetDataSample
    ids = torch.full((1, 64, 96), 2)
    # Instances 1 and 2 of class 0; pixels of no class are class 3, which is not drawn.
    ids[:, :32, :48], ids[:, :32, 48:], ids[:, 60:] = 1000, 2000, 3
    sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=ids))
    image = np.full((64, 96, 3), 100, np.uint8)
    drawn, found = Drawer('mmdet', None, None, num_classes=3)(image, sample)
    assert drawn.shape == (384, 576, 3)
    assert found == '0 50 %, 2 44 %'
    assert np.abs(drawn[-10:].astype(int) - 100).max() == 0
    assert np.abs(drawn[250:340].astype(int) - 100).min(-1).max() > 10


def test_a_sliding_window_is_not_the_image_at_once():
    from mmseg.structures import SegDataSample
    model = build_tiny_model(sliding())
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 96, 144), np.uint8))
    sample = SegDataSample(metainfo=dict(ori_shape=(64, 64), img_shape=(64, 64)))
    batch = pseudo_collate([dict(inputs=image, data_samples=sample)])
    calls = []

    def network(images):
        calls.append(tuple(images.shape))
        return [images[:, :1].repeat(1, 4, 1, 1)]

    with exported_network(model, 'segmentation', network, 3):
        predict(model, batch)
    assert calls == [(1, 3, 64, 64)] * 6
    # The model is itself again.
    assert predict(model, batch)[0].seg_logits.data.shape == (4, 64, 64)


def test_methods_for_another_task_are_refused(tmp_path):
    for cfg, method in ((several_tasks(), 'segment'), (with_channels(segmentor(), 4), 'classify')):
        meta = json.dumps(describe(cfg, META, cfg.model.backbone.get('in_channels', 3)))
        model = OnnxModel(write_onnx_stub(tmp_path / f'{method}.onnx', dict(pelk_mm=meta)))
        with pytest.raises(ValueError, match=f'is of {task_of(cfg)}'):
            getattr(model, method)(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match='has 3 channels, and the model takes 4'):
        model.segment(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(('cfg', 'task', 'message'), [
    (tiny_config('classification'), 'segmentation', 'encode_decode.*ImageClassifier'),
    (tiny_config('segmentation'), 'classification', 'classifier with a head, got EncoderDecoder'),
], ids=['classifier', 'segmentor'])
def test_models_without_the_part_to_export_are_refused(cfg, task, message):
    with pytest.raises(ValueError, match=message):
        ImageModel(build_model(cfg, 'cpu'), task)


def test_images_of_a_folder_are_sorted_and_counted(tmp_path):
    cfg, images = tiny_config('segmentation'), write_images(tmp_path)
    assert len(EvalImages(cfg, 8, images)) == 3
    batch = next(EvalImages(cfg, 1, images).batches())
    assert batch['inputs'][0].shape == (3, 64, 64)
    for index, image in enumerate(EvalImages(cfg, 3, images).arrays()):
        np.testing.assert_array_equal(image, cv2.imread(str(images / f'{index}.png')))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='has none of'):
        EvalImages(cfg, 1, tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match='no such folder'):
        EvalImages(cfg, 1, tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='count must be at least 1'):
        EvalImages(cfg, 0, images)


def test_pipelines_without_a_loader_load_plain_files(tmp_path):
    """A config's loader, and that of an exported file, as its data set may load images by itself."""
    cfg, images = tiny_config('classification'), write_images(tmp_path, 1)
    del cfg.test_dataloader.dataset.pipeline[0]
    model = OnnxModel(write_onnx_stub(tmp_path / 'stub.onnx', dict(pelk_mm=json.dumps(describe(cfg, META)))))
    assert model.pipeline.plain_files
    for load in (image_loader(cfg), model.load):
        np.testing.assert_array_equal(load(images / '0.png'), cv2.imread(str(images / '0.png')))


def test_a_file_exported_by_0_1_0_predicts_as_it_did():
    """A segmentor with one channel of logits, a threshold of 0.446, and windows of 64 on images of 96 x 144."""
    model = OnnxModel(FILE)
    assert (model.meta['task'], model.meta['classes'], model.meta['channels']) == ('segmentation', ['ant', 'bee'], 3)
    image = np.random.default_rng(7).integers(0, 256, (70, 90, 3), np.uint8)
    sample = model.predict(image)
    np.testing.assert_allclose(
        sample.seg_logits.data.flatten()[::700],
        [0.415178, 0.434977, 0.438276, 0.429400, 0.471543, 0.461199, 0.449091, 0.445797, 0.495322], atol=2e-6)
    assert model.segment(image).sum() == pytest.approx(0.5027 * 70 * 90, abs=2)
    logits, = model.run(np.full((2, 3, 75, 85), 100, np.float32))
    np.testing.assert_allclose(
        logits.flatten()[::2000],
        [-0.472146, -0.309771, -0.106059, -0.146694, -0.462596, -0.212600, 0.005359], atol=2e-6)
    assert re.fullmatch(r'ant \d+ %, bee \d+ %', ExportedDemo(str(FILE))(image)[1])
