"""Images and label maps that are missing, damaged or wrong are named with their fix, at the start or as they load."""

import json
import zipfile
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset, Compose, ConcatDataset, RepeatDataset
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.registry import TRANSFORMS, DefaultScope
from mmseg.datasets.transforms import loading
from PIL import Image

from pelk_mm.datasets.check import check_images
from pelk_mm.engine import image_files
from pelk_mm.engine.data_checks import DATA_CHECKS, ImageFileError, enabled_checks
from pelk_mm.engine.image_files import (
    CheckedLoading,
    build_checked_dataloader,
    check_pipeline,
    image_file_error,
    look_for_files,
    read_image,
)
from pelk_mm.engine.loaders import is_local
from pelk_mm.engine.loops import SeededDataset
from pelk_mm.image_decoding import decoding_error

from .small_data import IDS, IMAGE, LOAD, PACK, RNG, checked_samples, encoded, ids_of


@pytest.mark.parametrize('kind', ['jpeg', 'png', 'bmp', 'webp', 'tiff'])
def test_complete_files_pass_and_cut_ones_do_not(tmp_path, kind):
    file = tmp_path / f'a.{kind}'
    file.write_bytes(encoded(kind=kind))
    assert image_file_error(str(file)) is None
    assert read_image(str(file)).shape == (40, 48, 3)
    for share in (0.01, 0.3, 0.9):
        file.write_bytes(encoded(kind=kind, share=share))
        assert f'is damaged or no image ({file.stat().st_size} bytes; ' in image_file_error(str(file))
        with pytest.raises(ImageFileError, match=rf'{file} is damaged .* images --root {tmp_path} finds'):
            read_image(str(file))


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'is empty'), (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (b'<!DOCTYPE html>', 'is damaged or no image (15 bytes; '), (b'\xff\xd8 but no image \xff\xd9', None)
])
def test_other_files_are_no_images(tmp_path, content, words):
    file = tmp_path / 'a.jpg'
    file.write_bytes(content)
    damage = image_file_error(str(file))
    assert damage is None if words is None else words in damage
    with pytest.raises(ImageFileError, match=r'a\.jpg is '):
        read_image(str(file))


@pytest.mark.parametrize(('kind', 'suffix'), [('tiff', 'tif'), ('png', 'png'), ('jpeg', 'jpg')])
def test_bytes_behind_the_end_and_more_pixels_than_pillow_allows_do_no_harm(tmp_path, monkeypatch, kind, suffix):
    """Cameras write such files, which only decoding proves complete; the limit of 179 million pixels is lowered."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    path = tmp_path / f'a.{suffix}'
    path.write_bytes(encoded(kind=kind) + bytes(20))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert image_file_error(str(path)) is image_file_error(str(path), before_loading=True) is None
    assert decoding_error(path) == ''
    assert read_image(str(path)).shape == (40, 48, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    path.write_bytes(encoded(kind=kind, share=0.5))
    assert 'is damaged or no image' in image_file_error(str(path))


def test_opencv_still_decodes_half_a_jpeg_without_a_word(tmp_path):
    """The decoder raises nothing, so files are checked before."""
    (tmp_path / 'a.jpg').write_bytes(encoded(kind='jpeg', share=0.6))
    assert cv2.imread(str(tmp_path / 'a.jpg')) is not None


def pipeline(*steps):
    with DefaultScope.overwrite_default_scope('mmseg'):
        composed = Compose([TRANSFORMS.build(step) for step in steps])
    check_pipeline(composed)
    return composed


def test_a_pipeline_names_the_file(tmp_path):
    load = pipeline(LOAD[0], dict(type='Resize', scale=(20, 20)))
    file = tmp_path / 'a.jpg'
    file.write_bytes(encoded(kind='jpeg'))
    assert load(dict(img_path=str(file)))['img'].shape[0] <= 20
    check_pipeline(load)
    assert len([step for step in load.transforms if isinstance(step, CheckedLoading)]) == 1
    assert 'LoadImageFromFile(ignore_empty=False' in repr(load)
    file.write_bytes(encoded(kind='jpeg', share=0.6))
    with pytest.raises(ImageFileError, match=rf'img_path: {file} is damaged or no image'):
        load(dict(img_path=str(file)))
    with pytest.raises(FileNotFoundError, match='img_path: there is no file nowhere.jpg. Correct data_root'):
        load(dict(img_path='nowhere.jpg'))
    (tmp_path / 'b.png').write_bytes(b'\x89PNG' + bytes(30) + b'IEND\xaeB`\x82')
    with pytest.raises(ImageFileError, match=r'b\.png cannot be loaded by LoadImageFromFile \(\w+: '):
        load(dict(img_path=str(tmp_path / 'b.png')))
    lenient = pipeline(dict(LOAD[0], ignore_empty=True))
    assert lenient(dict(img_path=str(file))) is lenient(dict(img_path='nowhere.jpg')) is None


@pytest.fixture
def folder(tmp_path):
    """Two images and their label maps."""
    for part, array in (('images', IMAGE), ('labels', IDS)):
        (tmp_path / part).mkdir()
        for number in range(2):
            (tmp_path / f'{part}/{number}.png').write_bytes(encoded(array))
    (tmp_path / 'list.txt').write_text('0\n1')
    return tmp_path


@pytest.mark.parametrize(('part', 'key'), [('images', 'img_path'), ('labels', 'seg_map_path')])
def test_damaged_files_and_the_switch(folder, part, key):
    (folder / part / '0.png').write_bytes(encoded(IMAGE if part == 'images' else IDS, 'jpeg', share=0.6))
    with pytest.raises(ImageFileError, match=rf'{key}: .*is damaged or no image .*data_checks\.damaged_images=False'):
        checked_samples(folder)
    # By the loader's own error, without the path of the file or with another.
    with pytest.raises((AssertionError, OSError, ImageFileError), match='failed to load|cannot be loaded by|truncated'):
        checked_samples(folder, checks={'missing_files'})


@TRANSFORMS.register_module(force=True)
class NpyOfTests(LoadImageFromFile):
    """Arrays beside the names that the data set lists."""

    def transform(self, results):
        img = np.load(results['img_path'].replace('.png', '.npy'))
        return dict(results, img=img, img_shape=img.shape[:2], ori_shape=img.shape[:2])


def test_images_in_other_files_than_the_list_names(folder):
    for number in range(2):
        (folder / f'images/{number}.png').unlink()
        np.save(folder / f'images/{number}.npy', np.dstack([IMAGE, IMAGE]))
    assert checked_samples(folder, [dict(type='NpyOfTests'), LOAD[1], PACK])[0]['inputs'].shape == (6, 40, 48)


@pytest.mark.skipif(not hasattr(loading, 'LoadImageFromNpyFile'), reason='mmseg 1.2.2 has no such transform')
def test_images_in_other_files_by_a_loader_of_the_toolbox(folder):
    """Missing label maps are still found."""
    for number in range(2):
        np.save(folder / f'images/{number}.png.npy', IMAGE)
    steps = [dict(type='LoadImageFromNpyFile'), LOAD[1], PACK]
    assert checked_samples(folder, steps, img_suffix='.png.npy')[0]['inputs'].shape == (3, 40, 48)
    (folder / 'labels/0.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'of 2 files looked for \(seg_map_path\) 1 are not there'):
        checked_samples(folder, steps, img_suffix='.png.npy')


def test_missing_files_that_the_loader_leaves_out(folder):
    assert len(checked_samples(folder, [LOAD[0], PACK])) == 2
    (folder / 'labels/0.png').unlink()
    # No step loads them.
    assert len(checked_samples(folder, [LOAD[0], PACK])) == 2
    (folder / 'labels/0.png').write_bytes(encoded(IDS))
    (folder / 'images/0.png').unlink()
    assert len(checked_samples(folder, [dict(LOAD[0], ignore_empty=True), LOAD[1], PACK])) == 2
    with pytest.raises(FileNotFoundError, match=r'1 are not there, the first is .*images/0\.png'):
        checked_samples(folder)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_float32_tiff(folder, channels):
    file = folder / 'images/0.tif'
    array = RNG.random((40, 48, channels), dtype=np.float32)
    assert cv2.imwrite(str(file), array, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    (folder / 'list.txt').write_text('0')
    assert image_file_error(str(file)) is None
    assert check_images(folder)[0].found == '5 of 5 images are undamaged'
    steps = [dict(LOAD[0], color_type='unchanged'), LOAD[1], PACK]
    loaded = checked_samples(folder, steps, img_suffix='.tif')[0]['inputs']
    assert torch.equal(loaded, torch.from_numpy(array).permute(2, 0, 1))
    # Still found if it is cut off.
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ImageFileError, match=r'img_path: .*images/0\.tif '):
        checked_samples(folder, steps, img_suffix='.tif')


def test_label_maps_beyond_the_limit_say_how_to_lift_it(folder, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(ImageFileError, match=r"DecompressionBombError.*Set imdecode_backend='cv2'"):
        checked_samples(folder)
    assert ids_of(checked_samples(folder, [LOAD[0], dict(LOAD[1], imdecode_backend='cv2'), PACK])[0]) == {0, 1, 2, 3}


class ZipBackend(BaseStorageBackend):
    """Files in a zip archive, as many write it for clusters."""

    def __init__(self, zip_path):
        self.zip_path = zip_path

    def get(self, filepath):
        with zipfile.ZipFile(self.zip_path) as opened:
            return opened.read(filepath)

    def get_text(self, filepath, encoding='utf-8'):
        return self.get(filepath).decode(encoding)


register_backend('zip_of_tests', ZipBackend, force=True)


def test_files_in_a_zip_archive(tmp_path):
    from mmengine.config import Config

    from pelk_mm.engine.annotation_files import check_annotation_files
    with zipfile.ZipFile(tmp_path / 'data.zip', 'w') as opened:
        opened.writestr('d/x.json', json.dumps(dict(images=[], annotations=[], categories=[])))
        opened.writestr('d/images/0.png', encoded())
        opened.writestr('d/labels/0.png', encoded(IDS))
    (tmp_path / 'list.txt').write_text('0')
    args = dict(backend='zip_of_tests', zip_path=str(tmp_path / 'data.zip'))
    steps = [*(dict(step, backend_args=args) for step in LOAD), PACK]
    inside = dict(data_root='d', ann_file=str(tmp_path / 'list.txt'))
    sample, = checked_samples(tmp_path, steps, **inside)
    assert ids_of(sample) == {0, 1, 2, 3}
    # What is not there is named with the client's arguments.
    (tmp_path / 'list.txt').write_text('1')
    with pytest.raises(ImageFileError, match=r'd/images/1\.png cannot be loaded by .*Check backend_args=.*zip_of'):
        checked_samples(tmp_path, steps, **inside)
    dataset = dict(type='CocoDataset', data_root='d', ann_file='x.json', backend_args=args)
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))
    with pytest.raises(ValueError, match=r'train_dataloader\.dataset\.ann_file: d/x\.json lists no images'):
        check_annotation_files(cfg, ('train', ))
    cfg.train_dataloader.dataset.ann_file = 'not_there.json'
    check_annotation_files(cfg, ('train', ))


@pytest.mark.parametrize(('path', 'args', 'local'), [
    ('a/b.jpg', None, True), ('/a/b.jpg', {}, True), ('a.jpg', dict(backend='local'), True),
    ('s3://b/a.jpg', None, False), ('cluster:s3://b/a.jpg', None, False), ('https://b/a.jpg', None, False),
    *(('a.jpg', dict(backend=name), False) for name in ('lmdb', 'memcached', 'http', 'petrel', 'unknown')),
    ('x://a', None, False), ('a.jpg', dict(backend='zip_of_tests', zip_path='no.zip'), False)
])
def test_which_files_are_on_this_machine(path, args, local):
    assert is_local(path, args) is local


class Listed(BaseDataset):
    """Images in a list."""

    def load_data_list(self):
        return [dict(img_path=path) for path in self.metainfo['paths']]


def listed(paths, **options):
    return Listed(metainfo=dict(paths=[str(path) for path in paths]), **options)


def test_missing_and_empty_files_are_found_at_the_start(tmp_path):
    files = [tmp_path / f'{i}.png' for i in range(5)]
    for file in files:
        file.write_bytes(encoded())
    look_for_files(listed(files))
    files[3].write_bytes(b'')
    with pytest.raises(ImageFileError, match=r'of 5 files looked for \(img_path\) 1 are empty, the first is .*/3\.png'):
        look_for_files(listed(files))
    files[3].unlink()
    with pytest.raises(FileNotFoundError, match=r'Listed: of 5 files .* 1 are not there, the first is .*/3\.png'):
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


@pytest.mark.parametrize('wrap', [lambda dataset: dataset, lambda dataset: RepeatDataset(dataset, 2),
                                  lambda dataset: ConcatDataset([dataset, dataset]),
                                  lambda dataset: SeededDataset(dict(type=partial(lambda: dataset)))])
def test_loaders_of_wrapped_data_sets(tmp_path, wrap):
    (tmp_path / 'a.jpg').write_bytes(encoded(kind='jpeg'))
    dataset = listed([tmp_path / 'a.jpg'], pipeline=[dict(type='LoadImageFromFile')])
    loader = build_checked_dataloader(lambda config: SimpleNamespace(dataset=wrap(dataset)), {})
    (tmp_path / 'a.jpg').write_bytes(encoded(kind='jpeg', share=0.6))
    with pytest.raises(ImageFileError, match='img_path: .*is damaged'):
        loader.dataset[0]


def test_every_check_is_on_unless_it_is_named():
    assert enabled_checks({}) == frozenset(DATA_CHECKS)
    some = enabled_checks(dict(data_checks=dict(label_maps=False, class_count=True)))
    assert some == set(DATA_CHECKS) - {'label_maps'}
    assert enabled_checks(dict(data_checks=False)) == frozenset()
    with pytest.raises(ValueError, match=r'missing_files, .* to True or False, got labels=False, class_count=0'):
        enabled_checks(dict(data_checks=dict(labels=False, class_count=0)))
