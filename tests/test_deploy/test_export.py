"""ONNX files and packages: standard operations, every size, PyTorch's numbers, and all metadata to run them."""

import errno
import io
import json
import logging
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.registry import TRANSFORMS, DefaultScope
from torch import nn
from torch.export import Dim

from pelk_mm.deploy import (
    EvalImages,
    ImageModel,
    OnnxModel,
    Predictions,
    capture,
    deploy,
    describe,
    export,
    prepare_for_export,
    save_deployment,
    save_onnx,
    save_package,
    task_of,
    verify_outputs,
    verify_predictions,
)
from pelk_mm.deploy.export import AveragePoolByProducts
from pelk_mm.deploy.inference import predict
from pelk_mm.deploy.onnx_ops import BOX_SUMS, translations
from pelk_mm.layers import PeripheralConv2d
from pelk_mm.testing.tiny_models import CLASSES, PALETTE, build_tiny_model, tiny_config, write_images

from ..helpers.tiny_heads import padded, several_tasks
from ..helpers.toy_files import write_onnx_stub

META = dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE))
# A grid of the paper, one without sharing, one that grows inwards, wide centres, 1x1, and whether there is a bias.
GRIDS = [(51, True), (5, True), ([1, 2, 4, 8, 1], False), ([3, 5], True), ([1], True), ([7, 1], False)]
SIZES = [(1, 1), (1, 9), (7, 5), (14, 31), (60, 33)]


class Convolutions(nn.Module):
    """One peripheral convolution for each grid."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(PeripheralConv2d(3, grid, bias=bias, backend='reference') for grid, bias in GRIDS)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        return tuple(conv(x) for conv in self.convs)


@pytest.fixture(scope='module')
def session():
    """All grids in ONNX's operations."""
    model = Convolutions()
    for conv in model.convs:
        conv.backend = 'box_sums'
    dynamic = dict(x={0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    program = torch.export.export(model, (torch.zeros(2, 3, 8, 9), ), dynamic_shapes=dynamic)
    result = torch.onnx.export(
        program, dynamo=True, opset_version=20, custom_translation_table=translations(), verbose=False)
    assert all(not node.domain and node.op_type != 'Conv' for node in result.model.graph)
    return onnxruntime.InferenceSession(result.model_proto.SerializeToString())


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_onnx_operations_are_the_peripheral_convolution(session, size):
    x = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = Convolutions()(x)
    for (grid, _), value, got in zip(GRIDS, expected, session.run(None, {'x': x.numpy()})):
        np.testing.assert_allclose(got, value.numpy(), rtol=0, atol=2e-6 * value.abs().max().item(), err_msg=str(grid))


def test_dense_kernel_form_is_the_peripheral_convolution():
    model = Convolutions().double()
    dense = prepare_for_export(model, 'dense')
    assert all(type(conv) is nn.Conv2d for conv in dense.convs)
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.double, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(dense(x), model(x))


@pytest.mark.parametrize('bins', [2, 3, 6, (3, 5), (None, 4)], ids=str)
def test_pooling_by_products(bins):
    pool = AveragePoolByProducts(bins)
    for size in SIZES:
        x = torch.rand(2, 3, *size, dtype=torch.double)
        torch.testing.assert_close(pool(x), nn.AdaptiveAvgPool2d(bins)(x))


def test_preparing_leaves_the_model_as_it_is():

    class Silent(nn.Sequential):
        """As mmdet's ResNet, whose train() and eval() return nothing."""

        def train(self, mode=True):
            super().train(mode)

    model = Silent(PeripheralConv2d(3, 13), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(1))
    kinds = ['PeripheralConv2d', 'AdaptiveAvgPool2d', 'AdaptiveAvgPool2d']
    for kernel_form, first in dict(fast='PeripheralConv2d', dense='Conv2d').items():
        prepared = prepare_for_export(model, kernel_form)
        assert [type(module).__name__ for module in prepared] == [first, 'AveragePoolByProducts', 'AdaptiveAvgPool2d']
        assert not any(parameter.requires_grad for parameter in prepared.parameters())
        assert not prepared[2].training
    assert [type(module).__name__ for module in model] == kinds
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"kernel_form must be one of \('fast', 'dense'\), got 'sparse'"):
        prepare_for_export(model, 'sparse')


def test_the_old_exporter_is_refused_and_its_advice_works(tmp_path):
    """``torch.onnx.export(..., dynamo=False)`` by hand, then both ways that the message names."""
    model = build_tiny_model(tiny_config('classification'))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(images)[0].numpy()
    with pytest.raises(RuntimeError, match='dynamo=True, custom_translation_table=.*prepare_for_export'):
        torch.onnx.export(model.backbone, (images, ), io.BytesIO(), dynamo=False)
    new = tmp_path / 'new.onnx'
    torch.onnx.export(
        model.backbone, (images, ), str(new), dynamo=True, custom_translation_table=translations(), verbose=False)
    model.backbone.switch_to_deploy()
    old = io.BytesIO()
    torch.onnx.export(prepare_for_export(model.backbone, 'dense'), (images, ), old, dynamo=False)
    for file in (str(new), old.getvalue()):
        session = onnxruntime.InferenceSession(file)
        got, = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_models_that_cannot_be_traced_are_named(monkeypatch):
    model = build_tiny_model(tiny_config('classification'))
    monkeypatch.setattr(type(model.head), 'forward', lambda self, feats: self.fc(feats[-1]) * bool(feats[-1].sum() > 0))
    with pytest.raises(RuntimeError, match='ImageClassifier .*head LinearClsHead.* cannot be exported') as caught:
        capture(ImageModel(model, 'classification', 'fast'))
    assert len(str(caught.value)) < 600


def padded_sliding():
    """Windows that slide; with aligned corners, mmseg's resize() makes numbers of sizes, to warn of them."""
    cfg = tiny_config('segmentation')
    cfg.model.decode_head.align_corners = True
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(40, 40))
    return padded(cfg)


# Config, kernel form and names of the outputs.
EXPORTS = {
    'several tasks': (several_tasks, 'fast', ['kind', 'more.marks']),
    'padded sliding': (padded_sliding, 'fast', ['logits']),
    'detector': (lambda: tiny_config('detection'), 'dense', ['stage0', 'stage1', 'stage2', 'stage3']),
}


@pytest.fixture(scope='module', params=[pytest.param(name, marks=pytest.mark.slow) for name in EXPORTS])
def exported(request, tmp_path_factory):
    """Config, merged model, names of its outputs and ONNX file, the package beside it."""
    build, kernel_form, names = EXPORTS[request.param]
    cfg = build()
    task, model = task_of(cfg), deploy(build_tiny_model(cfg), cfg).model
    program = capture(ImageModel(model, task, kernel_form))
    path = tmp_path_factory.mktemp('export') / 'model.onnx'
    save_onnx(program, path, ImageModel(model, task).output_names(), describe(cfg, META))
    save_package(program, path.with_suffix('.pt2'))
    return cfg, model, names, path


def test_files_compute_the_outputs_of_pytorch(exported):
    cfg, model, names, path = exported
    reference, rng = ImageModel(model, task_of(cfg)).eval(), np.random.default_rng(0)
    # Multiples of the stride and not, none that of the example that is traced.
    shapes = [(1, 3, 64, 96), (3, 3, 75, 85)]
    inputs = [rng.uniform(0, 255, shape).astype(np.float32) for shape in shapes]
    for file in (path, path.with_suffix('.pt2')):
        found = verify_outputs(reference, file, inputs)
        assert [(each.shape, each.output) for each in found] == [(shape, name) for shape in shapes for name in names]
        assert max(each.relative for each in found) < 1e-4
    if task_of(cfg) == 'segmentation':
        assert OnnxModel(path).run(inputs[1])[0].shape == (3, 4, 75, 85)
    # The last stage has one pixel.
    assert verify_outputs(reference, path, [inputs[0][:, :, :40, :50]])[0].relative < 1e-4


def test_files_predict_as_the_model(exported, tmp_path):
    cfg, model, _, path = exported
    folder = write_images(tmp_path, 2)
    for file in (path, path.with_suffix('.pt2')):
        found = verify_predictions(model, task_of(cfg), file, EvalImages(cfg, 2, str(folder)).batches())
        assert (found.images, found.equal) == (2, found.decisions)
        assert found.error < 1e-5
    if task_of(cfg) == 'detection':
        assert found.detections.before == found.detections.matched == 20
        return
    assert found.decisions > 0
    # From the file only, which knows how images are loaded and prepared.
    onnx_model, direct = OnnxModel(path), Predictions()
    for file, batch in zip(sorted(folder.glob('*.png')), EvalImages(cfg, 2, str(folder)).batches()):
        direct.add(predict(model, batch)[0], onnx_model.predict(onnx_model.load(file)))
    assert (direct.decisions, direct.error < 1e-5) == (found.decisions, True)


def test_files_hold_standard_operations_and_free_axes(exported):
    cfg, *_, path = exported
    model = onnx.load(path)
    products = [node for node in model.graph.node if node.name.startswith(BOX_SUMS) and node.op_type == 'MatMul']
    assert len(products) == (0 if task_of(cfg) == 'detection' else 4)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {'', 'ai.onnx'}
    assert not model.functions
    image, = model.graph.input
    dims = image.type.tensor_type.shape.dim
    assert image.name == 'image'
    assert [dim.dim_value for dim in dims] == [0, 3, 0, 0]
    assert len({dims[i].dim_param for i in (0, 2, 3)}) == 3


def test_files_hold_no_paths_of_their_origin(exported):
    *_, model, _, path = exported
    for file in (path, path.with_suffix('.pt2')):
        assert b'site-packages' not in file.read_bytes()
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size < 4 * weights + 200_000


@pytest.mark.parametrize(('transform', 'shape'), [
    (dict(type='Resize', scale=(50, 40)), (40, 50)),
    (dict(type='Resize', scale=(96, 64), keep_ratio=True), (64, 80)),
    (dict(type='Resize', scale=(96, 48)), (48, 96)),
    (dict(type='Pad', size=(70, 60), pad_val=dict(img=(9, 8, 7))), (60, 70)),
], ids=str)  # yapf: disable
def test_the_pipeline_comes_back_as_it_was(transform, shape, tmp_path):
    """Tuples too: as lists, transforms refuse them or take them for something else. Annotations are not loaded."""
    cfg = tiny_config('segmentation')
    cfg.test_dataloader.dataset.pipeline[1] = transform
    meta = dict(pelk_mm=json.dumps(describe(cfg, META)))
    model = OnnxModel(write_onnx_stub(tmp_path / 'stub.onnx', meta))
    assert (model.meta['task'], model.meta['classes']) == ('segmentation', list(CLASSES))
    names = [each['type'] for each in model.meta['pipeline']]
    assert names == ['LoadImageFromFile', transform['type'], 'PackSegInputs']
    assert model.meta['pipeline'][1] == transform
    image = np.random.default_rng(1).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    prepared = model.prepare(image)
    assert (prepared.shape, prepared.dtype) == ((1, 3, *shape), np.float32)
    with DefaultScope.overwrite_default_scope('mmseg'):
        expected = TRANSFORMS.build(transform)(dict(img=image, img_shape=(40, 50)))['img']
    np.testing.assert_array_equal(prepared[0].transpose(1, 2, 0)[..., ::-1], expected)


def test_a_pipeline_that_cannot_be_saved_is_refused():
    cfg = tiny_config('segmentation')
    cfg.test_dataloader.dataset.pipeline[1].scale_factor = np.float32
    with pytest.raises(ValueError, match='must hold plain values .* got scale_factor=.*float32.* of Resize'):
        describe(cfg, META)


@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_images_are_normalised_as_the_preprocessor_does(task):
    """The classifier takes RGB, the segmentor BGR; the exported graph takes RGB for both."""
    model = build_tiny_model(tiny_config(task))
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    batch = model.data_preprocessor(dict(inputs=[image]), False)
    with torch.no_grad():
        expected = model(batch['inputs'], mode='tensor')
        got = ImageModel(model, task)(image.flip(0)[None].float())[0]
    if task == 'segmentation':
        expected = torch.nn.functional.interpolate(expected, (64, 64), mode='bilinear', align_corners=False)
    torch.testing.assert_close(got, expected)


def test_unknown_toolboxes_and_files_are_refused(tmp_path):
    cfg = tiny_config('classification')
    cfg.default_scope = 'mmrotate'
    with pytest.raises(ValueError, match="default_scope .* got 'mmrotate'"):
        task_of(cfg)
    write_onnx_stub(tmp_path / 'other.onnx', {})
    with pytest.raises(ValueError, match='no metadata of pelk_mm'):
        OnnxModel(tmp_path / 'other.onnx')
    with pytest.raises(FileNotFoundError, match='no such exported file'):
        OnnxModel(tmp_path / 'nowhere.onnx')


@pytest.fixture(scope='module')
def saves():
    """Return the functions that save a layer or a deployed model to a path, by the name of the file."""
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3), ))
    cfg = tiny_config('classification')
    deployment = deploy(build_tiny_model(cfg), cfg)
    return {
        'a.onnx': lambda path: save_onnx(program, path, ['y'], {}),
        'a.pt2': lambda path: save_package(program, path),
        'a.pth': lambda path: save_deployment(deployment, {}, path),
    }


@pytest.mark.parametrize('function', ['fsync', 'replace'])
@pytest.mark.parametrize('files', [['a.onnx'], ['a.pt2'], ['a.pth', 'a.py']], ids=str)
def test_files_are_complete_or_absent_and_never_overwritten(saves, files, function, tmp_path, monkeypatch):

    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    folder, save = tmp_path / 'new', saves[files[0]]
    with monkeypatch.context() as context:
        context.setattr(os, function, fail)
        with pytest.raises(OSError, match='No space left on device'):
            save(folder / files[0])
    assert os.listdir(folder) == []
    # So that the next try is not refused.
    level = logging.getLogger('torch.onnx').level
    save(folder / files[0])
    assert logging.getLogger('torch.onnx').level == level
    assert sorted(os.listdir(folder)) == files
    for file in files:
        mine = tmp_path / f'{file}.folder' / file
        mine.parent.mkdir()
        mine.write_text('precious')
        with pytest.raises(FileExistsError, match=f'{file} exists and is not overwritten'):
            save(mine.with_name(files[0]))
        assert [path.read_text() for path in mine.parent.iterdir()] == ['precious']


def test_weights_too_large_for_one_file_are_left_to_pytorch(saves, tmp_path, monkeypatch):
    monkeypatch.setattr(export, '_ONE_FILE', 0)
    saves['a.onnx'](tmp_path / 'new' / 'a.onnx')
    onnx.checker.check_model(str(tmp_path / 'new' / 'a.onnx'), full_check=True)
