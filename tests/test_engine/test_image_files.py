"""Images and label maps that are missing, damaged or wrong are named with their cure, at the start or as they load."""

import json
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose, ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from pelk_mm.deploy import EvalImages
from pelk_mm.engine import image_files
from pelk_mm.engine.image_files import (
    ImageFileError,
    build_checked_dataloader,
    check_pipeline,
    check_when_loading,
    image_file_error,
    look_for_files,
    read_image,
)
from pelk_mm.engine.launch import run
from pelk_mm.engine.loops import SeededDataset
from pelk_mm.testing.tiny_models import CLASSES, PALETTE, tiny_config, write_pictures, write_tiny_model

pytestmark = pytest.mark.slow

SUFFIXES = ('jpg', 'png', 'bmp', 'webp', 'tif')


def picture(path, size=(48, 40)):
    """A picture that does not compress to a few bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    image.save(path, **(dict(quality=95) if path.suffix == '.jpg' else {}))
    return path


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    return path


def test_a_file_that_was_looked_at_is_only_read(tmp_path, monkeypatch):
    file = picture(tmp_path / 'a.png')
    monkeypatch.setattr(image_files, 'image_file_error', None)
    assert read_image(str(file), check=False).shape == (40, 48, 3)
    file.write_bytes(b'no image')
    with pytest.raises(ImageFileError, match=r'a\.png is damaged or no image'):
        read_image(str(file), check=False)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_whole_files_pass_and_cut_ones_do_not(tmp_path, suffix):
    file = picture(tmp_path / f'a.{suffix}')
    size = file.stat().st_size
    assert image_file_error(str(file)) is None
    assert read_image(str(file)).shape == (40, 48, 3)
    for share in (0.01, 0.3, 0.9):
        picture(file)
        cut(file, share)
        assert 'is damaged or no image (' in image_file_error(str(file))
        assert f'({int(share * size)} bytes; ' in image_file_error(str(file))
        with pytest.raises(ImageFileError, match=rf'{file} is damaged .* images --root {tmp_path} finds'):
            read_image(str(file))


@pytest.mark.parametrize(('content', 'words'), [(b'', 'is empty'),
                                                (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
                                                (b'<!DOCTYPE html>', 'is damaged or no image (15 bytes; '),
                                                (b'\xff\xd8 but no picture \xff\xd9', None)])
def test_non_images_are_rejected(tmp_path, content, words):
    (tmp_path / 'a.jpg').write_bytes(content)
    damage = image_file_error(str(tmp_path / 'a.jpg'))
    assert damage is None if words is None else words in damage
    with pytest.raises(ImageFileError, match=r'a\.jpg is '):
        read_image(str(tmp_path / 'a.jpg'))


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(tmp_path):
    """Cameras write such files; they are whole, which only decoding them tells."""
    file = picture(tmp_path / 'a.jpg')
    file.write_bytes(file.read_bytes() + bytes(100))
    assert image_file_error(str(file)) is None


def test_opencv_still_decodes_half_a_jpeg_without_a_word(tmp_path):
    """Why files are looked at before."""
    file = cut(picture(tmp_path / 'a.jpg'))
    assert cv2.imread(str(file)) is not None


def pipeline(*steps):
    with DefaultScope.overwrite_default_scope('mmseg'):
        composed = Compose([TRANSFORMS.build(step) for step in steps])
    check_pipeline(composed)
    return composed


def test_a_pipeline_names_the_file(tmp_path):
    load = pipeline(dict(type='LoadImageFromFile'), dict(type='Resize', scale=(20, 20)))
    file = picture(tmp_path / 'a.jpg')
    assert load(dict(img_path=str(file)))['img'].shape[0] <= 20
    check_pipeline(load)
    assert len([step for step in load.transforms if isinstance(step, image_files.CheckedLoading)]) == 1
    assert 'LoadImageFromFile(ignore_empty=False' in repr(load)
    cut(file)
    with pytest.raises(ImageFileError, match=rf'img_path: {file} is damaged or no image'):
        load(dict(img_path=str(file)))
    with pytest.raises(FileNotFoundError, match='img_path: there is no file nowhere.jpg. Correct data_root'):
        load(dict(img_path='nowhere.jpg'))
    (tmp_path / 'b.png').write_bytes(b'\x89PNG' + bytes(30) + b'IEND\xaeB`\x82')
    with pytest.raises(ImageFileError, match=r'b\.png cannot be loaded by LoadImageFromFile \(\w+: '):
        load(dict(img_path=str(tmp_path / 'b.png')))


def test_ignore_empty_goes_on_without_the_file(tmp_path):
    load = pipeline(dict(type='LoadImageFromFile', ignore_empty=True))
    assert load(dict(img_path=str(cut(picture(tmp_path / 'a.jpg'))))) is None
    assert load(dict(img_path='nowhere.jpg')) is None


# --- label maps


def labels(path, values, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)
    return path


def seg_dataset(folder, **options):
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(24, 20)), dict(type='LoadAnnotations')]
    config = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=CLASSES, palette=PALETTE),
        pipeline=steps)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build({**config, **options})
    check_when_loading(dataset)
    return dataset


def seg_map(values):
    """Of 48 x 40 pixels, one row of each value and the rest 0."""
    rows = np.zeros((40, 48))
    rows[:len(values)] = np.reshape(values, (-1, 1))
    return rows


# Other classes of the type are ignored.
SOME_OF_ADE20K = dict(type='ADE20KDataset', metainfo=dict(classes=('wall', 'sky')))


@pytest.fixture
def pair(tmp_path):
    picture(tmp_path / 'images/a.jpg')
    return tmp_path


@pytest.mark.parametrize(('values', 'options'), [([0, 1, 2, 3, 255], {}),
                                                 ([0, 1, 2, 3, 4], dict(reduce_zero_label=True)),
                                                 ([0, 3, 9], dict(ignore_index=9)), ([0, 1, 2, 150], SOME_OF_ADE20K)])
def test_known_ids_pass(pair, values, options):
    labels(pair / 'labels/a.png', seg_map(values))
    assert seg_dataset(pair, **options)[0]['gt_seg_map'].shape == (40, 48)


@pytest.mark.parametrize(('values', 'options', 'words'), [
    ([0, 4], {}, 'has the ids 4, which are of no class: BaseSegDataset has 4 classes, ids 0 ... 3, and 255 is ignored. '
     'Set metainfo.classes to what the ids mean, or make these the ignored id. If 0 in the files means "no class" and '
     '1 is the first class, as in ADE20K, set reduce_zero_label=True'),
    ([7, 9, 255], {}, 'has the ids 7, 9, which'),
    (range(20, 35), {}, 'has the ids 20, 21, 22, 23, 24, 25, 26, 27, ..., which'),
    ([0, 5, 6], dict(reduce_zero_label=True), 'has the ids 5, 6, which are of no class: BaseSegDataset has 4 classes, '
     'ids 1 ... 4, and 255 is ignored. Set metainfo.classes to what the ids mean, or make these the ignored id. '
     '(reduce_zero_label is True: 0 in the file is ignored, 1 is the first class)'),
])
def test_unknown_ids(pair, values, options, words):
    labels(pair / 'labels/a.png', seg_map(list(values)))
    with pytest.raises(ImageFileError, match='seg_map_path') as error:
        seg_dataset(pair, **options)[0]
    assert str(pair / 'labels/a.png') in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(('values', 'dtype', 'words'), [
    (np.zeros((40, 47)), np.uint8, 'is 40 x 47 (height x width), but its image'),
    (np.zeros((40, 48, 3)), np.uint8, 'is a colour image, 40 x 48 x 3, not a map of class ids. Convert'),
    (seg_map([300]), np.uint16, 'has ids up to 300, of which 8 bits, 44 for example, would be kept'),
])
def test_other_forms(pair, values, dtype, words):
    labels(pair / 'labels/a.png', values, dtype)
    with pytest.raises(ImageFileError, match='seg_map_path') as error:
        seg_dataset(pair)[0]
    assert words in str(error.value)
    if 'height' in words:
        assert f'{pair / "images/a.jpg"} is 40 x 48. Check that they belong together' in str(error.value)


def test_small_ids_of_16_bits_pass(pair):
    labels(pair / 'labels/a.png', seg_map([0, 1, 2]), np.uint16)
    assert seg_dataset(pair)[0]['gt_seg_map'].max() == 2


def test_a_damaged_label_map(pair):
    rng = np.random.default_rng(0)
    cut(labels(pair / 'labels/a.png', rng.integers(0, 4, (40, 48))))
    with pytest.raises(ImageFileError, match=r'seg_map_path: .*labels/a\.png is damaged or no image'):
        seg_dataset(pair)[0]


def test_label_maps_are_checked_in_test_time_augmentation(pair):
    labels(pair / 'labels/a.png', seg_map([9]))
    steps = [[dict(type='Resize', scale=(24, 20))], [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]]
    dataset = seg_dataset(pair, pipeline=[dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=steps)])
    with pytest.raises(ImageFileError, match='has the ids 9, which'):
        dataset[0]


# --- when a run starts


class Listed(BaseDataset):
    """Images in a list."""

    def load_data_list(self):
        return [dict(img_path=path) for path in self.metainfo['paths']]


def listed(paths, **options):
    return Listed(metainfo=dict(paths=[str(path) for path in paths]), **options)


def test_missing_and_empty_files_are_found_at_the_start(tmp_path):
    files = [picture(tmp_path / f'{i}.jpg') for i in range(5)]
    look_for_files(listed(files))
    files[3].write_bytes(b'')
    with pytest.raises(ImageFileError, match=r'of 5 files looked for \(img_path\) 1 are empty, the first is .*/3\.jpg'):
        look_for_files(listed(files))
    files[3].unlink()
    with pytest.raises(FileNotFoundError, match=r'Listed: of 5 files .* 1 are not there, the first is .*/3\.jpg'):
        look_for_files(listed(files))
    look_for_files(listed(['s3://bucket/a.jpg']))
    look_for_files(object())


def test_not_all_of_a_large_data_set_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, 'MAX_FILES_CHECKED', 4)
    seen = []
    dataset = listed(['a'] * 100)
    monkeypatch.setattr(dataset, 'get_data_info', lambda index: seen.append(index) or {})
    look_for_files(dataset)
    assert seen == [0, 33, 66, 99]


def test_an_empty_data_set_is_refused(tmp_path):
    cfg = task_config('segmentation', tmp_path)
    (tmp_path / 'empty').mkdir()
    cfg.train_dataloader.dataset.data_prefix.img_path = 'empty'
    with pytest.raises(ImageFileError, match=rf"BaseSegDataset \(data_root='{tmp_path}', .* has no samples. Correct"):
        run(cfg, 'train')


@pytest.mark.parametrize('wrap', [lambda dataset: dataset, lambda dataset: RepeatDataset(dataset, 2),
                                  lambda dataset: ConcatDataset([dataset, dataset]),
                                  lambda dataset: SeededDataset(dict(type=partial(lambda: dataset)))])
def test_loaders_of_wrapped_data_sets(tmp_path, wrap):
    dataset = listed([picture(tmp_path / 'a.jpg')], pipeline=[dict(type='LoadImageFromFile')])
    loader = build_checked_dataloader(lambda config: SimpleNamespace(dataset=wrap(dataset)), {})
    cut(tmp_path / 'a.jpg')
    with pytest.raises(ImageFileError, match='img_path: .*is damaged'):
        loader.dataset[0]


# --- through the tools, for all three tasks


def task_config(task, folder):
    """A config that trains and tests on the one picture in a folder."""
    cfg = tiny_config(task).to_dict()
    dataset = cfg['test_dataloader']['dataset']
    picture(folder / 'train/ant/a.jpg')
    if task == 'classification':
        for name in CLASSES[1:]:
            picture(folder / 'train' / name / 'a.jpg')
        dataset.update(data_root=str(folder), data_prefix='train', classes=CLASSES, with_label=True)
        cfg['test_evaluator'] = dict(type='Accuracy')
    elif task == 'segmentation':
        labels(folder / 'labels/a.png', seg_map([0, 1]))
        dataset.update(data_root=str(folder), data_prefix=dict(img_path='train/ant', seg_map_path='labels'))
        cfg['test_evaluator'] = dict(type='IoUMetric')
    else:
        box = dict(id=1, image_id=1, category_id=1, bbox=[2, 2, 20, 20], area=400, iscrowd=0)
        (folder / 'a.json').write_text(
            json.dumps(
                dict(
                    images=[dict(id=1, file_name='a.jpg', height=40, width=48)],
                    annotations=[box],
                    categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)])))
        dataset.update(data_root=str(folder), ann_file='a.json', data_prefix=dict(img='train/ant'))
        dataset['pipeline'] = [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs')
        ]
        cfg['test_evaluator'] = dict(type='CocoMetric', ann_file=str(folder / 'a.json'))
    loader = dict(cfg['test_dataloader'], num_workers=2 if task == 'classification' else 0)
    if task == 'classification':
        loader['collate_fn'] = dict(type='default_collate')
    cfg.update(test_dataloader=loader, train_dataloader=dict(loader, dataset=dict(dataset)), custom_hooks=[])
    cfg.update(train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)))
    cfg['work_dir'] = str(folder / 'work')
    return Config(cfg)


@pytest.mark.parametrize('mode', ['train', 'test'])
@pytest.mark.parametrize('task', ['classification', 'segmentation', 'one_stage_detection'])
def test_a_run_stops_at_a_damaged_image_and_names_it(tmp_path, task, mode):
    cfg = task_config(task, tmp_path)
    # Whole enough for what is looked at when the run starts.
    cut(tmp_path / 'train/ant/a.jpg')
    with pytest.raises(ImageFileError, match=r'img_path: .*train/ant/a\.jpg is damaged or no image .*check_dataset'):
        run(cfg, mode)


def test_a_run_stops_at_unknown_ids_in_training_and_testing(tmp_path):
    for mode in ('train', 'test'):
        cfg = task_config('segmentation', tmp_path)
        labels(tmp_path / 'labels/a.png', seg_map([0, 17]))
        with pytest.raises(ImageFileError, match='has the ids 17, which are of no class'):
            run(cfg, mode)


def test_a_run_does_not_start_without_its_files(tmp_path, monkeypatch):
    cfg = task_config('segmentation', tmp_path)
    (tmp_path / 'labels/a.png').rename(tmp_path / 'labels/b.png')
    monkeypatch.setattr(Runner, 'load_or_resume', None)
    with pytest.raises(FileNotFoundError, match=r'BaseSegDataset: of 1 files looked for \(seg_map_path\) 1 are'):
        run(cfg, 'train')


def test_image_demo_and_test_images(tmp_path, run_tool):
    (tmp_path / 'images').mkdir()
    write_pictures(tmp_path / 'images', 2)
    cut(tmp_path / 'images/1.png')
    config, checkpoint = write_tiny_model('classification', tmp_path)
    code, printed = run_tool('image_demo.py', tmp_path / 'images', config, checkpoint, '--out-dir', tmp_path / 'out',
                             '--device', 'cpu')
    assert code == 2
    assert f'inputs: {tmp_path / "images/1.png"} is damaged or no image' in printed
    assert not (tmp_path / 'out').exists()
    images = EvalImages(Config.fromfile(config), 2, str(tmp_path / 'images'))
    with pytest.raises(ImageFileError, match=r'1\.png is damaged'):
        list(images.batches())
    assert torch.is_tensor(next(images.batches())['inputs'][0])
