"""switch_to_deploy, export and image_demo, run as a user runs them, on tiny models of each task."""

import functools
import json
import re
import shutil
import time

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.structures import PixelData

from pelk_mm import layers
from pelk_mm.deploy import EvalImages, OnnxModel, merge
from pelk_mm.deploy.inference import predict
from pelk_mm.engine import image_files
from pelk_mm.engine.launch import configure_testing, load_config
from pelk_mm.engine.launch import run as run_mmengine
from pelk_mm.testing import benchmark
from pelk_mm.testing.tiny_models import CLASSES, build_tiny_model, tiny_config, write_images, write_tiny_model

from ..helpers.tiny_heads import BINARY, sliding, with_channels, write_images_for

pytestmark = pytest.mark.slow

TASKS = ('classification', 'segmentation', 'detection')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Config and checkpoint of a task's tiny model, written once."""
    return functools.cache(lambda task: write_tiny_model(task, tmp_path_factory.mktemp(task)))


@pytest.mark.parametrize('task', TASKS)
def test_switching_is_proven_and_saved(task, tiny, tmp_path, images, printed_by):
    config, checkpoint = tiny(task)
    out = tmp_path / 'new' / 'deployed.pth'
    switch = ('model_converters/switch_to_deploy.py', config, checkpoint, out, '--images', images)
    printed = printed_by(*switch)
    assert '3 images through both forms' in printed
    assert 'backbone.stages.3.blocks.0.mixer.mixer  same' in printed
    assert 'equal within 0.0001 (worst: ' in printed
    saved = torch.load(out, weights_only=True)
    assert set(saved) == {'meta', 'state_dict'}
    assert saved['meta']['dataset_meta']['classes'] == CLASSES
    assert saved['meta']['epoch'] == 3
    cfg = Config.fromfile(out.with_suffix('.py'))
    assert cfg.model.backbone.deploy is True
    assert saved['meta']['cfg'] == cfg.pretty_text
    before = out.read_bytes()
    printed = printed_by(*switch, code=2)
    assert out.read_bytes() == before
    assert 'exists and is not overwritten' in printed


def without_bias(fuse, *args):
    weight, bias = fuse(*args)
    return weight, torch.nn.Parameter(torch.zeros_like(bias))


def with_wrong_bias(fuse, *args):
    fused = fuse(*args)
    fused.bias.data *= 1.01
    return fused


# A step of merging, and the same done wrongly.
CORRUPTIONS = {
    'no constant': (layers.ReparamDepthwiseConv, 'switch_to_deploy', lambda switch, branches, *sums: switch(branches)),
    'no shift': (layers.branches, 'fuse_conv_bn_weights', without_bias),
    'off centre': (layers.branches, '_pad_center', lambda pad, *args: pad(*args).roll(1, -1)),
    'wrong head': (merge, 'fuse_conv_bn_eval', with_wrong_bias),
}


@pytest.mark.parametrize('corruption', CORRUPTIONS)
def test_a_corrupted_merge_exits_1_and_writes_nothing(corruption, tiny, tmp_path, images, printed_by, monkeypatch):
    config, checkpoint = tiny('segmentation')
    owner, name, wrong = CORRUPTIONS[corruption]
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: wrong(right, *args))
    out = tmp_path / 'deployed.pth'
    printed = printed_by('model_converters/switch_to_deploy.py', config, checkpoint, out, '--images', images, code=1)
    assert 'NOT equal' in printed
    assert 'above the tolerance' in printed
    assert not out.exists()
    assert not out.with_suffix('.py').exists()


def test_a_layer_that_never_ran_is_not_proven(tiny, tmp_path, images, printed_by, monkeypatch):
    config, checkpoint = tiny('segmentation')
    monkeypatch.setattr(merge, '_mergeable', lambda backbone: ['stages.0.blocks.0.drop_path'])
    monkeypatch.setattr('mmseg.models.EncoderDecoder.encode_decode', lambda self, x, metas: x)
    out = tmp_path / 'deployed.pth'
    printed = printed_by('model_converters/switch_to_deploy.py', config, checkpoint, out, '--images', images, code=1)
    assert 'NOT proven: nothing reached ' in printed
    assert not out.exists()


def classifier_of_folders(folder, count, classes=CLASSES):
    """A config whose test data are random images sorted into folders, and its files."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / 'images' / name).mkdir(parents=True)
    for name in classes:
        for i in range(count):
            image = rng.integers(0, 255, (64, 64, 3), np.uint8)
            cv2.imwrite(str(folder / 'images' / name / f'{i}.png'), image)
    cfg = tiny_config('classification')
    cfg.test_dataloader.dataset.update(data_root=str(folder), data_prefix='images')
    cfg.test_evaluator = dict(type='Accuracy', topk=(1, 2))
    # Beside the model, as in the recipes.
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    return write_tiny_model('classification', folder, cfg)


def test_metrics_before_and_after_are_equal(tmp_path, printed_by):
    """Through MMEngine's runner, as tools/test.py tests."""
    config, checkpoint = classifier_of_folders(tmp_path, 3)
    printed_by('model_converters/switch_to_deploy.py', config, checkpoint, tmp_path / 'deployed.pth')
    metrics = []
    for path in (config, tmp_path / 'deployed.py'):
        cfg = load_config(str(path), work_dir=str(tmp_path / path.stem))
        configure_testing(cfg, str(path.with_suffix('.pth')))
        metrics.append(run_mmengine(cfg, 'test'))
    assert metrics[0] == metrics[1]
    assert 0 < metrics[0]['accuracy/top2'] < 100


def test_tta_of_a_classifier_averages_both_flips(tmp_path):
    """Without tta_model and tta_pipeline in the config, by mmpretrain's default."""
    config, checkpoint = classifier_of_folders(tmp_path, 1, CLASSES[:1])
    scores = []
    for tta in (True, False):
        cfg = load_config(str(config), work_dir=str(tmp_path / str(tta)))
        configure_testing(cfg, str(checkpoint), str(tmp_path / f'{tta}.pkl'), tta=tta)
        run_mmengine(cfg, 'test')
        scores.append(load(tmp_path / f'{tta}.pkl')[0]['pred_score'])
    flipped = torch.from_numpy(cv2.imread(str(tmp_path / 'images' / CLASSES[0] / '0.png'))[:, ::-1].copy())
    with torch.no_grad():
        sample = build_tiny_model(cfg).test_step(dict(inputs=[flipped.permute(2, 0, 1)]))[0]
    torch.testing.assert_close(scores[0], (scores[1] + sample.pred_score) / 2)
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_sizes_too_small_to_export_are_refused(tiny, tmp_path, images, run_tool, printed_by):
    config, checkpoint = tiny('classification')
    export = ('model_converters/export.py', config, checkpoint, tmp_path / 'model.onnx', '--images', images)
    printed = printed_by(*export, '--shape', 63, 64, code=2)
    assert '--shape: sides must be at least 64, got 63 x 64' in printed
    with pytest.raises(ValueError, match='--shape: sides must be at least 64, got 32 x 32 of the test pipeline'):
        run_tool(*export, '--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(32,32)')
    assert not (tmp_path / 'model.onnx').exists()


def copy_files_that_decide_otherwise(monkeypatch, file):
    """Export what has been exported: logits agree, and the labels that the ONNX file's head makes of them do not."""

    def of_class_0(self, batch):
        for sample in batch['data_samples']:
            sample.pred_sem_seg = PixelData(data=torch.zeros(1, *sample.ori_shape))
        return batch['data_samples']

    monkeypatch.setattr(OnnxModel, 'predict_batch', of_class_0)
    monkeypatch.setattr('pelk_mm.deploy.capture', lambda model: None)
    monkeypatch.setattr('pelk_mm.deploy.save_onnx', lambda program, new, *_: shutil.copy(file, new))
    monkeypatch.setattr('pelk_mm.deploy.save_package', lambda _, new: shutil.copy(file.with_suffix('.pt2'), new))


@pytest.mark.parametrize('task', TASKS)
def test_export_and_demo(task, tiny, tmp_path, images, printed_by, monkeypatch):
    config, checkpoint = tiny(task)
    out = tmp_path / 'new' / 'model.onnx'
    forms = ['fast', 'dense'] if task == 'classification' else ['fast']
    int8 = ['--int8', 3, '--calibration', images] if task == 'classification' else []
    export = ('model_converters/export.py', config, checkpoint, out, '--images', images, '--timing-seconds', 0.3,
              '--form')
    monkeypatch.setattr('pelk_mm.testing.benchmark.time_paired', functools.partial(slow_down, benchmark.time_paired))
    printed = printed_by(*export, 'both' if len(forms) == 2 else 'fast', *int8)
    assert printed.index('timing for about 0.3 s at most') < printed.index('latency of')
    # Each function, PyTorch's among them, once to warm up and once to be timed, not nine times.
    written = len(forms) * (2 if int8 else 1)
    assert 2 <= slow_down.calls / (1 + written) <= 4
    files = {'fast': out, 'dense': out.with_stem('model-dense')}
    for form in forms:
        for line in (f'{files[form]}: {form} form', f'{files[form].with_suffix(".pt2")}: {form} form', '1x3x64x64',
                     '2x3x80x96', 'max difference', 'latency of 1x3x64x64', f'onnxruntime, {form} form'):
            assert line in printed
        if int8:
            file = files[form].with_stem(f'{files[form].stem}-int8')
            assert f'{file}: {form} form, int8' in printed
            assert f'onnxruntime, {form} form, int8' in printed
    assert printed.count(' of 3 images are predicted the same') == (len(forms) if int8 else 0)
    assert len(list(out.parent.iterdir())) == written + len(forms)
    before = out.read_bytes()
    printed = printed_by(*export, 'fast', code=2)
    assert out.read_bytes() == before
    assert 'exists and is not overwritten' in printed

    drawings = tmp_path / 'drawings'
    checked, image_file_error = [], image_files.image_file_error
    with monkeypatch.context() as patch:
        patch.setattr(image_files, 'image_file_error', lambda path: checked.append(path) or image_file_error(path))
        printed = printed_by('image_demo.py', images, out, '--out-dir', drawings)
    assert checked == [str(file) for file in sorted(images.iterdir())]
    assert sorted(file.name for file in drawings.iterdir()) == ['0.png', '1.png', '2.png']
    assert ('no boxes: the file holds only the backbone' in printed) == (task == 'detection')
    image, drawn = (mmcv.imread(str(folder / '0.png')) for folder in (images, drawings))
    assert drawn.shape == (384, 480 * (5 if task == 'detection' else 1), 3)
    assert np.abs(drawn[:, -480:] - mmcv.imresize(image, (480, 384)).astype(int)).max() > 50

    printed = printed_by('image_demo.py', images / '0.png', config, checkpoint, '--out-dir', tmp_path / 'other',
                         '--score-thr', 0)
    assert mmcv.imread(str(tmp_path / 'other' / '0.png')).shape == (384, 480, 3)
    found = printed.partition('0.png: ')[2]
    assert any(name in found for name in CLASSES)
    if task == 'segmentation':
        copy_files_that_decide_otherwise(monkeypatch, out)
        printed = printed_by(*export[:3], tmp_path / 'model.onnx', *export[4:], 'fast', '--timing-seconds', 0,
                             code='NOT equal within 0.001')
        assert printed.count('above the tolerance') == 1
    if task == 'classification':
        assert f'{CLASSES[OnnxModel(out).classify(image).argmax()]} (' in found


def test_a_binary_segmentor_that_slides_is_exported_as_it_predicts(tmp_path, printed_by):
    """One channel of logits, a sigmoid and a threshold; windows of 64 on images of 96 x 144, in four channels."""
    cfg, folder = with_channels(sliding(**BINARY), 4), tmp_path / 'four'
    folder.mkdir()
    write_images_for(cfg, folder)
    batch = next(EvalImages(cfg, 1, str(folder)).batches())
    # Half of the pixels are above it.
    cfg.model.decode_head.threshold = predict(build_tiny_model(cfg), batch)[0].seg_logits.data.median().item()
    config, checkpoint = write_tiny_model('segmentation', tmp_path, cfg)
    numbers = tmp_path / 'numbers.json'
    printed = printed_by('model_converters/export.py', config, checkpoint, tmp_path / 'model.onnx', '--images', folder,
                         '--timing-seconds', 0, '--json', numbers)
    assert "test_cfg.mode='slide': the files compute one window" in printed
    assert 'crop_size (64, 64) and stride (40, 40)' in printed
    assert 'latency' not in printed
    assert printed.count('final predictions: 0 of 10240 decisions differ') == 2
    assert [entry['predictions']['decisions'] for entry in json.loads(numbers.read_text())['files']] == [10240, 10240]
    found = []
    for name, model in (('onnx', [tmp_path / 'model.onnx']), ('config', [config, checkpoint])):
        printed = printed_by('image_demo.py', folder, *model, '--out-dir', tmp_path / name)
        found.append(re.findall(r'\d\.png: (ant \d+ %, bee \d+ %)', printed))
    assert found[0] == found[1]
    assert len(found[0]) >= 1
    model, demo_image = OnnxModel(tmp_path / 'model.onnx'), folder / '0.png'
    assert set(np.unique(model.segment(model.load(demo_image)))) == {0, 1}


def slow_down(time_paired, runs, *args, **kwargs):
    slow_down.calls = 0

    def slow(run, x):
        slow_down.calls += 1
        time.sleep(0.2)
        return run(x)

    return time_paired({name: functools.partial(slow, run) for name, run in runs.items()}, *args, **kwargs)


def test_demo_on_a_video(tiny, tmp_path, printed_by):
    config, checkpoint = tiny('segmentation')
    source = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*'MJPG'), 5, (96, 64))
    for i in range(3):
        writer.write(np.full((64, 96, 3), 60 * i, np.uint8))
    writer.release()
    demo = ('image_demo.py', source, config, checkpoint, '--out-dir', tmp_path / 'out')
    printed = printed_by(*demo)
    video = mmcv.VideoReader(str(tmp_path / 'out' / 'film.mp4'))
    assert (len(video), video.fps, video.resolution) == (3, 5, (576, 384))
    printed = printed_by(*demo, code=2)
    assert 'exists and is not overwritten' in printed


@pytest.mark.parametrize(('arguments', 'message'), [
    (('IMAGES', 'model.onnx', 'weights.pth'), 'an exported file takes no checkpoint'),
    (('IMAGES', 'config.py'), 'a config needs a checkpoint'),
    (('nowhere', 'model.onnx'), 'inputs: no such file or folder, nowhere'),
])
def test_wrong_arguments_of_the_demo(arguments, message, images, tmp_path, printed_by):
    arguments = [images if argument == 'IMAGES' else argument for argument in arguments]
    printed = printed_by('image_demo.py', *arguments, '--out-dir', tmp_path / 'out', code=2)
    assert message in printed
