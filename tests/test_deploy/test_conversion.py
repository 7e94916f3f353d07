"""Exported files in OpenVINO and in int8: how near they are, what stays in fp32, and which images calibrate them."""

from importlib.util import find_spec

import cv2
import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from pelk_mm.deploy import (
    EvalImages,
    ExportedModel,
    ImageModel,
    calibration_images,
    capture,
    deploy,
    describe,
    save_int8_onnx,
    save_onnx,
    save_openvino,
    verify_outputs,
    verify_predictions,
)
from pelk_mm.deploy.onnx_ops import BOX_SUMS
from pelk_mm.testing.tiny_models import CLASSES, PALETTE, build_tiny_model, tiny_config, write_pictures

pytestmark = pytest.mark.slow
needs_openvino = pytest.mark.skipif(
    not (find_spec('openvino') and find_spec('nncf')), reason='openvino or nncf is not installed')
META = dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A classifier with box sums: config, model, images to calibrate and compare on, and its ONNX file in fp32."""
    folder = tmp_path_factory.mktemp('files')
    cfg = tiny_config('classification')
    model = deploy(build_tiny_model(cfg), cfg).model
    images = EvalImages(cfg, 4, str(write_pictures(tmp_path_factory.mktemp('images'), 4)))
    program = capture(ImageModel(model, 'classification', 'fast'))
    save_onnx(program, folder / 'model.onnx', ['logits'], describe(cfg, META))
    return cfg, model, images, folder / 'model.onnx'


def compare(exported, path):
    """Noise of the logits on images of two sizes, and the predictions."""
    _, model, images, _ = exported
    inputs = [images.network_input(0), np.tile(images.network_input(1), (2, 1, 2, 1))]
    found = verify_outputs(ImageModel(model, 'classification').eval(), path, inputs)
    assert [each.shape for each in found] == [(1, 3, 64, 64), (2, 3, 128, 64)]
    assert ExportedModel(path).meta['classes'] == CLASSES
    return max(each.noise for each in found), verify_predictions(model, 'classification', path, images.batches())


def test_onnx_in_int8_is_near_and_box_sums_stay_fp32(exported, tmp_path):
    *_, images, source = exported
    path = tmp_path / 'int8.onnx'
    save_int8_onnx(source, path, images)
    noise, predictions = compare(exported, path)
    assert 1e-4 < noise < 0.1
    assert predictions.images == 4
    assert 0 < predictions.score_error < 0.1
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {''}
    producer = {output: node for node in graph.node for output in node.output}
    scales = {each.name: to_array(each) for each in graph.initializer}
    summed, weights = 0, []
    for node in graph.node:
        inputs = [producer[name] for name in node.input if name in producer]
        if node.name.startswith(BOX_SUMS):
            # Only the first reads what a quantised layer wrote.
            summed += node.op_type == 'MatMul'
            assert all(each.op_type != 'DequantizeLinear' for each in inputs) or node.op_type not in ('MatMul', 'Add')
        elif node.op_type in ('Conv', 'MatMul', 'Gemm'):
            assert {each.op_type for each in inputs} <= {'DequantizeLinear'}
            weights.append(scales[producer[node.input[1]].input[1]])
    assert summed == 4
    # Of stem and downsampling four, of the blocks two each, and the head's, each with a scale for every channel.
    assert len(weights) == 13
    assert all(scale.size > 1 for scale in weights)


@needs_openvino
def test_openvino_is_equal_and_near_in_int8(exported, tmp_path):
    *_, images, source = exported
    save_openvino(source, tmp_path / 'fp32.xml')
    noise, predictions = compare(exported, tmp_path / 'fp32.xml')
    assert noise < 1e-5
    assert (predictions.equal, predictions.error < 1e-5) == (predictions.decisions, True)
    save_openvino(source, tmp_path / 'int8.xml', images)
    noise, _ = compare(exported, tmp_path / 'int8.xml')
    assert 1e-4 < noise < 0.1
    import openvino
    operations = openvino.Core().read_model(str(tmp_path / 'int8.xml')).get_ordered_ops()
    assert sum(each.get_type_name() == 'FakeQuantize' for each in operations) >= 13
    for each in operations:
        if each.get_friendly_name().startswith(BOX_SUMS) and each.get_type_name() in ('Add', 'MatMul'):
            before = {value.get_node().get_type_name() for value in each.input_values()}
            assert 'FakeQuantize' not in before
    (tmp_path / 'int8.xml').unlink()
    with pytest.raises(FileExistsError, match=r'int8\.bin exists'):
        save_openvino(source, tmp_path / 'int8.xml')


def test_calibration_is_on_training_images_in_the_test_pipeline(tmp_path):
    """Within wrappers of data sets; the random transforms of training do not count."""
    (tmp_path / 'ant').mkdir()
    write_pictures(tmp_path / 'ant', 3)
    cfg = tiny_config('classification')
    with pytest.raises(ValueError, match=r'train_dataloader\.dataset'):
        calibration_images(cfg, 2)
    training = dict(cfg.test_dataloader.dataset, data_root=str(tmp_path), data_prefix='', pipeline=[
        dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=32), dict(type='PackInputs')])
    cfg.train_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=training))
    images = calibration_images(cfg, 2)
    assert len(images) == 2
    for index, name in enumerate(('0.png', '1.png')):
        expected = cv2.resize(cv2.imread(str(tmp_path / 'ant' / name)), (64, 64))[..., ::-1].transpose(2, 0, 1)
        np.testing.assert_array_equal(images.network_input(index), expected[None].astype(np.float32))
