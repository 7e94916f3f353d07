"""Exported files in OpenVINO and in int8: how near they are, what stays in fp32, and which images calibrate them."""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from pelk_mm.deploy import EvalImages, ExportedModel, calibration_images, save_int8_onnx, save_openvino
from pelk_mm.deploy.onnx_ops import BOX_SUMS
from pelk_mm.testing.tiny_models import tiny_config, write_images

needs_openvino = pytest.mark.skipif(
    not (find_spec('openvino') and find_spec('nncf')), reason='openvino or nncf is not installed')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """The segmentor that 0.1.0 exported, with the names that nodes of box sums have since."""
    model, inside = onnx.load(Path(__file__).parent / 'files/binary_segmentor_0.1.0.onnx'), False
    for node in model.graph.node:
        inside |= node.op_type == 'Unsqueeze'
        name = node.name
        if inside:
            node.name = BOX_SUMS + name
        inside &= not name.startswith('node_peripheral_conv2d')
    path = tmp_path_factory.mktemp('source') / 'fp32.onnx'
    onnx.save(model, path)
    return path


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp('images'), 4)
    return EvalImages(tiny_config('segmentation'), 4, str(folder))


def noise(source, path, images):
    """The root of the mean square of the difference, as a share, on one image and on two of another size."""
    expected, got = ExportedModel(source, 1), ExportedModel(path, 1)
    assert (got.outputs, got.meta) == (expected.outputs, expected.meta)
    one = images.network_input(0)
    outputs = [[model.run(image)[0] for image in (one, np.tile(one, (2, 1, 2, 1)))] for model in (expected, got)]
    return max(np.linalg.norm(before - after) / np.linalg.norm(before) for before, after in zip(*outputs))


def test_onnx_in_int8_is_near_and_box_sums_stay_fp32(source, images, tmp_path):
    path = tmp_path / 'int8.onnx'
    save_int8_onnx(source, path, images)
    assert 1e-4 < noise(source, path, images) < 0.1
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {''}
    producers = {output: node for node in graph.node for output in node.output}
    constants = {each.name: to_array(each) for each in graph.initializer}
    products, scales = 0, []
    for node in graph.node:
        inputs = [producers[name] for name in node.input if name in producers]
        quantized = [each.op_type == 'DequantizeLinear' for each in inputs]
        if node.name.startswith(BOX_SUMS) and node.op_type == 'MatMul':
            products += 1
            assert not any(quantized)
        elif node.op_type in ('Conv', 'MatMul'):
            assert all(quantized)
            scales.append(constants[producers[node.input[1]].input[1]])
    assert products == 4
    # Of nine convolutions and eight linear layers: one for each channel.
    assert len(scales) == 17
    assert all(scale.size > 1 or scale.ndim for scale in scales)


@needs_openvino
def test_openvino_is_equal_and_near_in_int8(source, images, tmp_path):
    import openvino
    save_openvino(source, tmp_path / 'fp32.xml')
    assert noise(source, tmp_path / 'fp32.xml', images) < 1e-5
    save_openvino(source, tmp_path / 'int8.xml', images)
    # Random weights; trained ones have 0.05.
    assert 1e-4 < noise(source, tmp_path / 'int8.xml', images) < 0.4
    products, quantized = 0, 0
    for each in openvino.Core().read_model(str(tmp_path / 'int8.xml')).get_ordered_ops():
        before = [value.get_node().get_type_name() == 'FakeQuantize' for value in each.input_values()]
        if each.get_friendly_name().startswith(BOX_SUMS):
            products += each.get_type_name() == 'MatMul'
            assert each.get_type_name() not in ('Add', 'MatMul') or not any(before)
        elif each.get_type_name() == 'MatMul':
            quantized += before[0]
    assert (products, quantized) == (4, 8)
    (tmp_path / 'int8.xml').unlink()
    with pytest.raises(FileExistsError, match=r'int8\.bin exists'):
        save_openvino(source, tmp_path / 'int8.xml')


def test_calibration_is_on_training_images_in_the_test_pipeline(tmp_path):
    """Within wrappers of data sets; the random transforms of training do not count."""
    (tmp_path / 'ant').mkdir()
    write_images(tmp_path / 'ant', 3)
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
