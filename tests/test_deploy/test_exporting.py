"""ONNX files and packages: standard operations, every size, PyTorch's numbers, and metadata enough to run alone."""

import errno
import json
import os

import numpy as np
import onnx
import pytest
import torch
from mmengine.registry import TRANSFORMS, DefaultScope

from pelk_mm.deploy import (
    ImageModel,
    OnnxModel,
    capture,
    deploy,
    describe,
    export,
    save_onnx,
    save_package,
    task_of,
    verify_onnx,
    verify_package,
)
from pelk_mm.testing.tiny_models import build_tiny_model, tiny_config
from pelk_mm.testing.toy_files import write_onnx_stub

pytestmark = pytest.mark.slow

META = dict(dataset_meta=dict(classes=('ant', 'bee', 'cat', 'dog'), palette=[[1, 2, 3]] * 4))
# Multiples of the stride and not, none that of the example that is traced.
SHAPES = [(1, 3, 64, 96), (3, 3, 75, 85)]
OUTPUTS = dict(classification=['logits'], segmentation=['logits'], detection=['stage0', 'stage1', 'stage2', 'stage3'])


def inputs():
    rng = np.random.default_rng(0)
    return [rng.uniform(0, 255, shape).astype(np.float32) for shape in SHAPES]


@pytest.fixture(scope='module', params=['segmentation-fast', 'detection-dense'])
def exported(request, tmp_path_factory):
    """Task, reference model and file of a task in a form."""
    task, form = request.param.split('-')
    cfg = tiny_config(task)
    model = deploy(build_tiny_model(cfg), cfg).model
    reference = ImageModel(model, task).eval()
    program = capture(ImageModel(model, task, form))
    path = tmp_path_factory.mktemp('export') / f'{task}.onnx'
    save_onnx(program, path, reference.output_names(), describe(cfg, META))
    save_package(program, path.with_suffix('.pt2'))
    return task, reference, path


def test_files_compute_what_pytorch_does(exported):
    task, reference, path = exported
    for verify, file in ((verify_onnx, path), (verify_package, path.with_suffix('.pt2'))):
        found = verify(reference, file, inputs())
        assert [(each.shape, each.output) for each in found] == [(shape, name) for shape in SHAPES
                                                                 for name in OUTPUTS[task]]
        assert max(each.relative for each in found) < 1e-4
    if task == 'segmentation':
        assert OnnxModel(path).run(inputs()[1])[0].shape == (3, 4, 75, 85)
    # The last stage has one pixel.
    assert verify_onnx(reference, path, [inputs()[0][:, :, :40, :50]])[0].relative < 1e-4


def test_files_hold_standard_operations_and_free_axes(exported):
    task, _, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {'', 'ai.onnx'}
    assert not model.functions
    image, = model.graph.input
    dims = image.type.tensor_type.shape.dim
    assert image.name == 'image'
    assert [dim.dim_value for dim in dims] == [0, 3, 0, 0]
    assert len({dims[i].dim_param for i in (0, 2, 3)}) == 3


def test_files_tell_nothing_of_where_they_were_made(exported):
    _, reference, path = exported
    for file in (path, path.with_suffix('.pt2')):
        assert b'site-packages' not in file.read_bytes()
    weights = sum(parameter.numel() for parameter in reference.parameters())
    assert path.stat().st_size < 4 * weights + 200_000


def test_files_know_how_to_run(exported):
    task, _, path = exported
    model = OnnxModel(path)
    assert model.meta['task'] == task
    assert model.meta['classes'] == ['ant', 'bee', 'cat', 'dog']
    assert 'LoadAnnotations' not in [transform['type'] for transform in model.meta['pipeline']]
    picture = np.random.default_rng(1).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    prepared = model.prepare(picture)
    assert (prepared.shape, prepared.dtype) == ((1, 3, 64, 64), np.float32)
    # A picture that is resized to its own size only changes its layout.
    square = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(model.prepare(square)[0].transpose(1, 2, 0)[..., ::-1], square)


@pytest.mark.parametrize(('transform', 'shape'), [
    (dict(type='Resize', scale=(96, 64), keep_ratio=True), (64, 80)),
    (dict(type='Resize', scale=(96, 48)), (48, 96)),
    (dict(type='Pad', size=(70, 60), pad_val=dict(img=(9, 8, 7))), (60, 70)),
], ids=str)  # yapf: disable
def test_the_pipeline_comes_back_as_it_was(transform, shape, tmp_path):
    """Tuples too: as lists, transforms refuse them or take them for something else."""
    cfg = tiny_config('segmentation')
    cfg.test_dataloader.dataset.pipeline[1] = transform
    meta = dict(pelk_mm=json.dumps(describe(cfg, META)))
    model = OnnxModel(write_onnx_stub(tmp_path / 'stub.onnx', meta))
    assert model.meta['pipeline'][1] == transform
    picture = np.full((40, 50, 3), 200, np.uint8)
    prepared = model.prepare(picture)
    assert prepared.shape == (1, 3, *shape)
    with DefaultScope.overwrite_default_scope('mmseg'):
        expected = TRANSFORMS.build(transform)(dict(img=picture, img_shape=(40, 50)))['img']
    np.testing.assert_array_equal(prepared[0].transpose(1, 2, 0)[..., ::-1], expected)


def test_a_pipeline_that_cannot_be_saved_is_refused():
    cfg = tiny_config('segmentation')
    cfg.test_dataloader.dataset.pipeline[1].scale_factor = np.float32
    with pytest.raises(ValueError, match='must hold plain values .* got scale_factor=.*float32.* of Resize'):
        describe(cfg, META)


@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_images_are_normalised_as_the_preprocessor_does(task):
    """The classifier takes RGB, the segmentor BGR; the exported graph takes RGB for both."""
    cfg = tiny_config(task)
    model = build_tiny_model(cfg)
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    batch = model.data_preprocessor(dict(inputs=[picture]), False)
    with torch.no_grad():
        expected = model(batch['inputs'], mode='tensor')
        got = ImageModel(model, task)(picture.flip(0)[None].float())[0]
    if task == 'segmentation':
        expected = torch.nn.functional.interpolate(expected, (64, 64), mode='bilinear', align_corners=False)
    torch.testing.assert_close(got, expected)


def test_nothing_is_overwritten_and_strangers_are_refused(tmp_path):
    (tmp_path / 'mine.onnx').write_text('precious')
    for save in (lambda path: save_onnx(None, path, [], {}), lambda path: save_package(None, path)):
        with pytest.raises(FileExistsError, match='exists and is not overwritten'):
            save(tmp_path / 'mine.onnx')
    assert (tmp_path / 'mine.onnx').read_text() == 'precious'
    cfg = tiny_config('classification')
    cfg.default_scope = 'mmrotate'
    with pytest.raises(ValueError, match="default_scope .* got 'mmrotate'"):
        task_of(cfg)
    write_onnx_stub(tmp_path / 'other.onnx', {})
    with pytest.raises(ValueError, match='no metadata of pelk_mm'):
        OnnxModel(tmp_path / 'other.onnx')
    with pytest.raises(FileNotFoundError, match='no such ONNX file'):
        OnnxModel(tmp_path / 'nowhere.onnx')


@pytest.fixture
def saves():
    """How a layer is saved, by the name of the file."""
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3), ))
    return {
        'a.onnx': lambda path: save_onnx(program, path, ['y'], {}),
        'a.pt2': lambda path: save_package(program, path),
    }


def test_files_are_there_whole_or_not_at_all(saves, tmp_path, monkeypatch):

    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    for name, save in saves.items():
        with monkeypatch.context() as context:
            context.setattr(os, 'replace', fail)
            with pytest.raises(OSError, match='No space left on device'):
                save(tmp_path / 'new' / name)
        assert os.listdir(tmp_path / 'new') == []
        # So that the next try is not refused.
        save(tmp_path / 'new' / name)
        (tmp_path / 'new' / name).unlink()


def test_weights_too_large_for_one_file_are_left_to_pytorch(saves, tmp_path, monkeypatch):
    monkeypatch.setattr(export, '_ONE_FILE', 0)
    saves['a.onnx'](tmp_path / 'new' / 'a.onnx')
    onnx.checker.check_model(str(tmp_path / 'new' / 'a.onnx'), full_check=True)
