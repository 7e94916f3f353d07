"""Runs whose data are missing, damaged or wrong stop with the file, the fix and the switch."""

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from pelk_mm.deploy import EvalImages
from pelk_mm.engine.data_checks import ImageFileError
from pelk_mm.engine.launch import load_config, run
from pelk_mm.testing.tiny_models import CLASSES, PALETTE, write_images, write_tiny_model

from .small_data import rows, task_config, write

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('mode', ['train', 'test'])
@pytest.mark.parametrize('task', ['classification', 'segmentation', 'one_stage_detection'])
def test_a_run_stops_at_a_damaged_image_and_names_it(tmp_path, task, mode):
    cfg = task_config(task, tmp_path)
    # Complete enough for what is checked when the run starts.
    write(tmp_path / 'train/ant/a.jpg', share=0.6)
    with pytest.raises(ImageFileError, match=r'img_path: .*train/ant/a\.jpg is damaged or no image .*check_dataset'):
        run(cfg, mode)


def test_a_run_does_not_start_without_its_files(tmp_path, monkeypatch):
    cfg = task_config('segmentation', tmp_path)
    (tmp_path / 'labels/a.png').rename(tmp_path / 'labels/b.png')
    monkeypatch.setattr(Runner, 'load_or_resume', None)
    with pytest.raises(FileNotFoundError, match=r'BaseSegDataset: of 1 files looked for \(seg_map_path\) 1 are'):
        run(cfg, 'train')
    (tmp_path / 'empty').mkdir()
    cfg = task_config('segmentation', tmp_path, data_prefix=dict(img_path='empty', seg_map_path='labels'))
    with pytest.raises(ImageFileError, match=rf"BaseSegDataset \(data_root='{tmp_path}', .* has no samples. Correct"):
        run(cfg, 'train')


def test_ids_that_only_the_model_ignores(tmp_path):
    cfg = task_config('segmentation', tmp_path)
    write(tmp_path / 'labels/a.png', rows(0, 3, 7))
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.ignore_index = 7
    cfg.model.data_preprocessor.seg_pad_val = 7
    run(cfg, 'train')
    assert (tmp_path / 'work/epoch_1.pth').is_file()


@pytest.mark.parametrize(('name', 'labels', 'number', 'words'), [
    ('label_maps', (255, ) * 40, 4, 'ignored pixels only'),
    ('class_count', (1, 2), 3, 'has 3 classes'),
])
def test_a_check_is_switched_off_by_the_name_in_its_message(tmp_path, name, labels, number, words):
    metainfo = dict(classes=CLASSES[:number], palette=PALETTE[:number])
    cfg = task_config('segmentation', tmp_path, metainfo=metainfo)
    write(tmp_path / 'labels/a.png', rows(*labels))
    with pytest.raises(ValueError, match=words) as error:
        run(cfg.copy(), 'train')
    assert str(error.value).endswith(f'switch this check off: --cfg-options data_checks.{name}=False')
    cfg.merge_from_dict({f'data_checks.{name}': False})
    run(cfg, 'train')
    assert (tmp_path / 'work/epoch_1.pth').is_file()


def test_image_demo_and_test_images(tmp_path, run_tool):
    (tmp_path / 'images').mkdir()
    write_images(tmp_path / 'images', 2)
    file = tmp_path / 'images/1.png'
    file.write_bytes(file.read_bytes()[:-300])
    config, checkpoint = write_tiny_model('classification', tmp_path)
    code, printed = run_tool('image_demo.py', tmp_path / 'images', config, checkpoint, '--out-dir', tmp_path / 'out',
                             '--device', 'cpu')
    assert code == 2
    assert f'inputs: {file} is damaged or no image' in printed
    assert not (tmp_path / 'out').exists()
    images = EvalImages(Config.fromfile(config), 2, str(tmp_path / 'images'))
    with pytest.raises(ImageFileError, match=r'1\.png is damaged'):
        list(images.batches())
    assert torch.is_tensor(next(images.batches())['inputs'][0])


MISSING = dict(
    imagenet=('imagenet/pelk-tiny_32xb128_in1k.py', {'model.head.in_channels': 249}),
    ade20k=('ade20k/pelk-tiny_upernet_8xb2-160k_ade20k-512x512.py', {
        'model.decode_head.in_channels': [31, 62, 124, 249],
        'model.auxiliary_head.in_channels': 124
    }),
    coco=('coco/cascade-mask-rcnn_pelk-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py', {
        'model.neck.in_channels': [31, 62, 124, 249]
    }))


@pytest.fixture
def cfg_of(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda name: load_config(
        str(root / 'configs' / MISSING[name][0]), {'model.backbone.arch': 'atto', **MISSING[name][1]})


@pytest.mark.parametrize('mode', ['train', 'test'])
@pytest.mark.parametrize('name', MISSING)
def test_missing_data(cfg_of, name, mode):
    with pytest.raises(FileNotFoundError) as error:
        run(cfg_of(name), mode)
    message = str(error.value)
    assert message.endswith(f'get the data: python tools/dataset_converters/check_dataset.py {name} says how')
    assert dict(imagenet='ImageNet (', ade20k='ADE20KDataset (', coco='_dataloader.dataset.ann_file: ')[name] in message
    assert f'data/{dict(ade20k="ade").get(name, name)}' in message


def test_missing_label_maps(cfg_of, tmp_path):
    """Make lists and images."""
    for part in ('images/training', 'images/validation', 'annotations/training', 'annotations/validation'):
        folder = tmp_path / 'data/ade/ADEChallengeData2016' / part
        folder.mkdir(parents=True)
        if 'images' in part:
            (folder / 'ADE_1.jpg').write_bytes(b'x')
    with pytest.raises(FileNotFoundError, match=r'of 1 files looked for \(seg_map_path\) 1 are not there.*'
                       r'check_dataset\.py ade20k says how\. .*data_checks\.missing_files=False'):
        run(cfg_of('ade20k'), 'train')
