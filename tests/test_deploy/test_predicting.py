"""Final predictions of exported files are those of the model in testing, for heads that decide in different ways."""

import ast

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from pelk_mm.analysis import build_model
from pelk_mm.analysis.model_building import build_without_weights
from pelk_mm.deploy import (
    EvalImages,
    ImageModel,
    OnnxModel,
    Predictions,
    capture,
    describe,
    save_onnx,
    save_package,
    task_of,
    verify_predictions,
)
from pelk_mm.deploy.inference import exported_network, predict
from pelk_mm.testing.tiny_models import CLASSES, PALETTE, randomise, tiny_config, write_pictures

pytestmark = pytest.mark.slow

META = dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE))
FCN = dict(type='FCNHead', channels=8, num_convs=1, concat_input=False, in_channels=16, in_index=3, num_classes=4)


def segmentor(decode_head=None, **model):
    cfg = tiny_config('segmentation')
    cfg.model.pop('auxiliary_head')
    cfg.model.update(model)
    cfg.model.decode_head = decode_head if isinstance(decode_head, list) else dict(FCN, **(decode_head or {}))
    return cfg


def classifier(**head):
    cfg = tiny_config('classification')
    cfg.model.head = dict(in_channels=16, **head)
    return cfg


def binary(threshold):
    # As mmsegmentation's FAQ has it.
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    return segmentor(dict(num_classes=2, out_channels=1, threshold=threshold, loss_decode=loss))


def sliding(**head):
    cfg = segmentor(head, test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(40, 40)))
    cfg.test_dataloader.dataset.pipeline[1].scale = (144, 96)
    return cfg


def padded(cfg):
    cfg.model.data_preprocessor.update(bgr_to_rgb=True, test_cfg=dict(size_divisor=32))
    cfg.test_dataloader.dataset.pipeline[1].update(scale=(100, 70), keep_ratio=True)
    return cfg


def cascade():
    ocr = dict(FCN, type='OCRHead', ocr_channels=8)
    del ocr['num_convs'], ocr['concat_input']
    return segmentor([FCN, ocr], type='CascadeEncoderDecoder', num_stages=2)


def several_tasks():
    return classifier(
        type='MultiTaskHead',
        task_heads=dict(
            kind=dict(type='LinearClsHead', num_classes=4),
            more=dict(type='MultiTaskHead', task_heads=dict(
                marks=dict(type='MultiLabelLinearClsHead', num_classes=3, thr=0.5)))))


CASES = {
    'binary': lambda: binary(0.79),
    'binary, low threshold': lambda: binary(0.3),
    'sliding': sliding,
    'padded, RGB': lambda: padded(segmentor()),
    'padded sliding, align_corners': lambda: padded(sliding(align_corners=True)),
    'cascade': cascade,
    'multi-label, threshold': lambda: classifier(type='MultiLabelLinearClsHead', num_classes=4, thr=0.45),
    'multi-label, topk': lambda: classifier(type='MultiLabelLinearClsHead', num_classes=4, topk=2),
    'several tasks': several_tasks,
}


def with_channels(cfg, channels):
    cfg.model.backbone.in_channels = channels
    # Of other numbers than 1 and 3 mmseg and mmdet take no mean for each.
    cfg.model.data_preprocessor.update(mean=[120.0], std=[60.0])
    if channels == 1:
        cfg.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    if channels == 4:
        cfg.test_dataloader.dataset.pipeline[0].color_type = 'unchanged'
    return cfg


CASES |= {
    'grey classifier': lambda: with_channels(tiny_config('classification'), 1),
    'segmentor of four channels': lambda: with_channels(segmentor(), 4),
}
# To be exported, which takes seconds for each.
EXPORTED = ('binary', 'padded sliding, align_corners', 'several tasks', 'segmentor of four channels')


def write_images(cfg, folder):
    """As many channels as the model takes."""
    images = write_pictures(folder, 2)
    for file in images.iterdir():
        if cfg.model.backbone.get('in_channels') == 4:
            picture = cv2.imread(str(file))
            cv2.imwrite(str(file), np.dstack([picture, picture[..., 0]]))
    return images


@pytest.mark.parametrize('case', CASES)
def test_the_head_that_the_file_describes_decides_as_the_model(case, tmp_path):
    cfg = CASES[case]()
    model, task = randomise(build_model(cfg, 'cpu')), task_of(cfg)
    network = ImageModel(model, task).eval()
    description = describe(cfg, META, network.channels)
    rules = build_without_weights(
        Config(dict(model=ast.literal_eval(description['model']), default_scope=description['scope'])))
    assert not list(rules.backbone.parameters())
    found = Predictions()
    for batch in EvalImages(cfg, 2, str(write_images(cfg, tmp_path))).batches():
        expected = predict(model, batch)
        with torch.no_grad(), exported_network(rules, task, network, network.channels):
            found.add(expected[0], predict(rules, batch)[0])
    assert (found.images, found.equal) == (2, found.decisions)
    # Classes of both images, or their pixels.
    assert found.decisions >= (8 if task == 'classification' else 2 * 64 * 80)
    assert found.error < 1e-5


@pytest.fixture(scope='module', params=EXPORTED)
def exported(request, tmp_path_factory):
    """Config, model, ONNX file and folder of images of a case."""
    folder, cfg = tmp_path_factory.mktemp('case'), CASES[request.param]()
    images, model = write_images(cfg, folder), randomise(build_model(cfg, 'cpu'))
    task = task_of(cfg)
    reference, program = ImageModel(model, task).eval(), capture(ImageModel(model, task, 'fast'))
    path = folder / 'model.onnx'
    save_onnx(program, path, reference.output_names(), describe(cfg, META, reference.channels))
    save_package(program, path.with_suffix('.pt2'))
    return cfg, model, path, images


def test_predictions_are_those_of_the_model(exported):
    cfg, model, path, images = exported
    for file in (path, path.with_suffix('.pt2')):
        found = verify_predictions(model, task_of(cfg), file, EvalImages(cfg, 2, str(images)).batches())
        assert (found.images, found.equal) == (2, found.decisions)
        assert found.decisions > 0
        assert found.error < 1e-5
    # From the file only, which knows how images are loaded and prepared.
    onnx = OnnxModel(path)
    direct = Predictions()
    for file, batch in zip(sorted(images.glob('*.png')), EvalImages(cfg, 2, str(images)).batches()):
        direct.add(predict(model, batch)[0], onnx.predict(onnx.load(file)))
    assert (direct.decisions, direct.error < 1e-5) == (found.decisions, True)


@pytest.mark.parametrize('case', ['binary', 'multi-label, threshold'])
def test_decisions_are_not_trivial(case, tmp_path):
    """Both classes of the binary segmentor, some labels but not all: a rule that ignores the head would show."""
    cfg = CASES[case]()
    batch = next(EvalImages(cfg, 1, str(write_images(cfg, tmp_path))).batches())
    found = predict(randomise(build_model(cfg, 'cpu')), batch)[0]
    if case == 'binary':
        assert 0.2 < found.pred_sem_seg.data.mean() < 0.8
    else:
        assert 0 < len(found.pred_label) < 4


def sample(cfg):
    if task_of(cfg) == 'classification':
        from mmpretrain.structures import DataSample
        return DataSample()
    from mmseg.structures import SegDataSample
    return SegDataSample(metainfo=dict(ori_shape=(64, 64), img_shape=(64, 64)))


def test_a_sliding_window_is_not_the_image_at_once():
    cfg = sliding()
    model = randomise(build_model(cfg, 'cpu'))
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 96, 144), np.uint8))
    batch = pseudo_collate([dict(inputs=image, data_samples=sample(cfg))])
    calls = []

    def network(images):
        calls.append(tuple(images.shape))
        return [images[:, :1].repeat(1, 4, 1, 1)]

    with exported_network(model, 'segmentation', network, 3):
        predict(model, batch)
    assert calls == [(1, 3, 64, 64)] * 6
    # The model is itself again.
    assert predict(model, batch)[0].seg_logits.data.shape == (4, 64, 64)


def test_predictions_that_differ_are_counted():
    from mmengine.structures import PixelData
    from mmpretrain.structures import DataSample
    from mmseg.structures import SegDataSample
    found = Predictions()
    found.add(DataSample().set_pred_score(torch.tensor([.1, .6, .3])).set_pred_label(torch.tensor([1, 2])),
              DataSample().set_pred_score(torch.tensor([.1, .5, .4])).set_pred_label(torch.tensor([2])))
    assert (found.decisions, found.equal) == (3, 2)
    assert found.score_error == pytest.approx(0.1)
    maps = [SegDataSample(pred_sem_seg=PixelData(data=torch.tensor([[[0.0, value]]]))) for value in (0, 1)]
    found.add(*maps)
    assert (found.decisions, found.equal, found.images) == (5, 3, 2)
    found.add(maps[0], SegDataSample(pred_sem_seg=PixelData(data=torch.zeros(1, 1, 3))))
    assert found.error == float('inf')


def test_methods_for_another_task_are_refused(exported):
    cfg, _, path, _ = exported
    onnx, image = OnnxModel(path), np.zeros((64, 64, 3), np.uint8)
    wrong = onnx.segment if task_of(cfg) == 'classification' else onnx.classify
    with pytest.raises(ValueError, match=f'is of {task_of(cfg)}'):
        wrong(image)
    if onnx.meta['channels'] == 4:
        with pytest.raises(ValueError, match='has 3 channels, and the model takes 4'):
            onnx.segment(image)


@pytest.mark.parametrize(('cfg', 'task', 'message'), [
    (tiny_config('classification'), 'segmentation', 'encode_decode.*ImageClassifier'),
    (tiny_config('segmentation'), 'classification', 'classifier with a head, got EncoderDecoder'),
], ids=['classifier', 'segmentor'])
def test_models_without_the_part_to_export_are_refused(cfg, task, message):
    with pytest.raises(ValueError, match=message):
        ImageModel(build_model(cfg, 'cpu'), task)
