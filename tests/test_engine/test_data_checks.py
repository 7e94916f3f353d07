"""Checks of data see what the loaders see: nothing that trains is refused, and each check can be switched off."""

import io
import json
import sys
import zipfile
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.config import Config
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from mmseg.datasets.transforms import loading
from PIL import Image

from pelk_mm.datasets.check import check_images
from pelk_mm.engine.annotation_files import check_annotation_files
from pelk_mm.engine.data_checks import DATA_CHECKS, ImageFileError, enabled_checks
from pelk_mm.engine.image_files import build_checked_dataloader, image_file_error, read_image
from pelk_mm.engine.launch import load_config, run
from pelk_mm.engine.loaders import is_local
from pelk_mm.image_decoding import decoding_error
from pelk_mm.testing.tiny_models import CLASSES, PALETTE, tiny_config

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (40, 48, 3), dtype=np.uint8)
IDS = RNG.integers(0, 4, (40, 48), dtype=np.uint8)
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
PACK = dict(type='PackSegInputs')


def encoded(array, kind='png', **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


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


class FakePetrel:
    """A bucket; paths are mapped to it by ``path_mapping``."""

    files = {}

    def __init__(self, **kwargs):
        pass

    def Get(self, path):
        return self.files.get(path)


@pytest.fixture
def bucket(monkeypatch):
    package = ModuleType('petrel_client')
    package.client = SimpleNamespace(Client=FakePetrel)
    monkeypatch.setitem(sys.modules, 'petrel_client', package)
    monkeypatch.setattr(FakePetrel, 'files', {})
    return FakePetrel.files


def seg_config(folder, steps=(*LOAD, PACK), **options):
    """A config that trains on the images that ``folder/list.txt`` names."""
    cfg = tiny_config('segmentation').to_dict()
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        ann_file='list.txt',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        metainfo=dict(classes=CLASSES, palette=PALETTE),
        pipeline=list(steps))
    dataset.update(options)
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
    cfg.update(train_dataloader=loader, test_dataloader=loader, test_evaluator=dict(type='IoUMetric'), custom_hooks=[])
    cfg.update(train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)))
    return Config(dict(cfg, work_dir=str(folder / 'work')))


def write(folder, maps, image=None, suffix='.png'):
    """Images and label maps, one for each array or bytes in ``maps``, in the format of ``seg_config``."""
    for part in ('images', 'labels'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(maps):
        (folder / f'images/{number}.png').write_bytes(encoded(IMAGE if image is None else image))
        content = content if isinstance(content, bytes) else encoded(content)
        (folder / f'labels/{number}{suffix}').write_bytes(content)
    (folder / 'list.txt').write_text('\n'.join(map(str, range(len(maps)))))


def load(folder, steps=(*LOAD, PACK), checks=tuple(DATA_CHECKS), ignored=(), **options):
    """All samples of a checked loader, as a run builds it."""
    config = seg_config(folder, steps, **options).train_dataloader.dataset

    def build(dataloader):
        with DefaultScope.overwrite_default_scope('mmseg'):
            return SimpleNamespace(dataset=DATASETS.build(dataloader['dataset']))

    loader = build_checked_dataloader(build, dict(dataset=config), checks=checks, ignored=ignored)
    return [loader.dataset[index] for index in range(len(loader.dataset))]


def ids_of(sample):
    return set(sample['data_samples'].gt_sem_seg.data.unique().tolist())


# --- files behind other clients


def test_training_from_a_zip_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / 'data.zip', 'w') as opened:
        for number in range(2):
            opened.writestr(f'd/images/{number}.png', encoded(IMAGE))
            opened.writestr(f'd/labels/{number}.png', encoded(IDS))
    (tmp_path / 'list.txt').write_text('0\n1')
    args = dict(backend='zip_of_tests', zip_path=str(tmp_path / 'data.zip'))
    steps = [*(dict(step, backend_args=args) for step in LOAD), PACK]
    cfg = seg_config(tmp_path, steps, data_root='d', ann_file=str(tmp_path / 'list.txt'))
    run(cfg, 'train')
    assert (tmp_path / 'work/epoch_1.pth').is_file()


def test_paths_that_are_mapped_to_a_bucket(tmp_path, bucket):
    (tmp_path / 'list.txt').write_text('0')
    bucket.update({'s3://b/images/0.png': encoded(IMAGE), 's3://b/labels/0.png': encoded(IDS)})
    args = dict(backend='petrel', path_mapping={f'{tmp_path}/': 's3://b/'})
    steps = [dict(step, backend_args=args) for step in LOAD] + [PACK]
    assert ids_of(load(tmp_path, steps)[0]) == {0, 1, 2, 3}
    # What is not there is named with the client's arguments.
    bucket.clear()
    with pytest.raises(ImageFileError, match=r"/images/0\.png cannot be loaded by .*Check backend_args=.*'petrel'"):
        load(tmp_path, steps)


@pytest.mark.parametrize(('path', 'args', 'local'), [
    ('a/b.jpg', None, True), ('/a/b.jpg', {}, True), ('a.jpg', dict(backend='local'), True),
    ('s3://b/a.jpg', None, False), ('cluster:s3://b/a.jpg', None, False),
    ('https://b/a.jpg', None, False), ('a.jpg', dict(backend='lmdb'), False),
    ('a.jpg', dict(backend='memcached'), False), ('a.jpg', dict(backend='http'), False), ('x://a', None, False),
    ('a.jpg', dict(backend='zip_of_tests', zip_path='no.zip'), False), ('a.jpg', dict(backend='unknown'), False)
])
def test_which_files_are_on_this_machine(path, args, local):
    assert is_local(path, args) is local


def test_a_coco_file_in_a_zip_archive_is_read_through_its_client(tmp_path):
    content = dict(images=[], annotations=[], categories=[])
    with zipfile.ZipFile(tmp_path / 'data.zip', 'w') as opened:
        opened.writestr('d/x.json', json.dumps(content))
    args = dict(backend='zip_of_tests', zip_path=str(tmp_path / 'data.zip'))
    dataset = dict(type='CocoDataset', data_root='d', ann_file='x.json', backend_args=args)
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))
    with pytest.raises(ValueError, match=r'train_dataloader\.dataset\.ann_file: d/x\.json lists no images'):
        check_annotation_files(cfg, ('train', ))
    dataset['ann_file'] = 'not_there.json'
    check_annotation_files(Config(dict(cfg, train_dataloader=dict(dataset=dataset))), ('train', ))


# --- loaders of somebody's own


@TRANSFORMS.register_module(force=True)
class NpyOfTests(LoadImageFromFile):
    """Arrays beside the names that the data set lists."""

    def transform(self, results):
        img = np.load(results['img_path'].replace('.png', '.npy'))
        return dict(results, img=img, img_shape=img.shape[:2], ori_shape=img.shape[:2])


@TRANSFORMS.register_module(force=True)
class WideIdsOfTests(LoadAnnotations):
    """Ids of 16 bits, 1000 times the class."""

    def __init__(self):
        super().__init__(with_bbox=False, with_label=False, with_seg=True)

    def _load_seg_map(self, results):
        wide = cv2.imread(results['seg_map_path'], cv2.IMREAD_UNCHANGED)
        results['gt_seg_map'] = (wide // 1000).astype(np.int64)
        results['seg_fields'].append('gt_seg_map')


@TRANSFORMS.register_module(force=True)
class HalveOfTests:
    """Grey values to classes: 255 becomes 1."""

    def __call__(self, results):
        results['gt_seg_map'] = np.uint8(results['gt_seg_map'] > 100)
        return results


def test_images_in_other_files_than_the_list_names(tmp_path):
    write(tmp_path, [IDS])
    (tmp_path / 'images/0.png').unlink()
    np.save(tmp_path / 'images/0.npy', np.dstack([IMAGE, IMAGE]))
    samples = load(tmp_path, [dict(type='NpyOfTests'), LOAD[1], PACK])
    assert samples[0]['inputs'].shape == (6, 40, 48)


@pytest.mark.skipif(not hasattr(loading, 'LoadImageFromNpyFile'), reason='mmseg 1.2.2 has no such transform')
def test_images_in_other_files_by_a_loader_of_the_toolbox(tmp_path):
    """Missing label maps are still found."""
    write(tmp_path, [IDS])
    np.save(tmp_path / 'images/0.png.npy', IMAGE)
    steps = [dict(type='LoadImageFromNpyFile'), LOAD[1], PACK]
    assert load(tmp_path, steps, img_suffix='.png.npy')[0]['inputs'].shape == (3, 40, 48)
    (tmp_path / 'labels/0.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'of 1 files looked for \(seg_map_path\) 1 are not there'):
        load(tmp_path, steps, img_suffix='.png.npy')


def test_ids_of_16_bits_that_a_loader_decodes(tmp_path):
    write(tmp_path, [IDS.astype(np.uint16) * 1000])
    assert ids_of(load(tmp_path, [LOAD[0], dict(type='WideIdsOfTests'), PACK])[0]) == {0, 1, 2, 3}
    with pytest.raises(ImageFileError, match='has ids up to 3000, of which 8 bits, 184 for example, would be kept'):
        load(tmp_path)


def test_65535_is_ignored_as_255_is(tmp_path):
    write(tmp_path, [np.where(IDS == 3, 65535, IDS).astype(np.uint16)])
    assert ids_of(load(tmp_path)[0]) == {0, 1, 2, 255}


def test_grey_values_that_a_later_transform_turns_into_classes(tmp_path):
    write(tmp_path, [np.where(IDS > 1, 255, 0).astype(np.uint8), np.where(IDS > 1, 128, 0).astype(np.uint8)])
    samples = load(tmp_path, [*LOAD, dict(type='HalveOfTests'), PACK])
    assert [ids_of(sample) for sample in samples] == [{0, 1}, {0, 1}]
    write(tmp_path, [IDS + 200])
    # What it leaves wrong is found where the sample is packed.
    with pytest.raises(ImageFileError, match=r'labels/0\.png has the ids 1, which are of no class'):
        load(tmp_path, [*LOAD, dict(type='HalveOfTests'), PACK], metainfo=dict(classes=('x', ), palette=PALETTE[:1]))


def test_ids_that_only_the_model_ignores(tmp_path):
    write(tmp_path, [np.where(IDS == 3, 7, IDS).astype(np.uint8)] * 2)
    assert ids_of(load(tmp_path, ignored=[7])[0]) == {0, 1, 2, 7}
    cfg = seg_config(tmp_path)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(ignore_index=7)
    cfg.model.data_preprocessor.seg_pad_val = 7
    run(cfg, 'train')
    with pytest.raises(ImageFileError, match='has the ids 7, which are of no class'):
        load(tmp_path)


@pytest.mark.parametrize(('resize', 'fits'), [
    ([], False), ([dict(type='Resize', scale=(32, 32), keep_ratio=False)], True),
    ([dict(type='Resize', scale=(96, 80), keep_ratio=True)], True),
    ([dict(type='RandomResize', scale=(32, 32), ratio_range=(1.0, 1.0), keep_ratio=False)], True),
])
def test_label_maps_of_half_the_size(tmp_path, resize, fits):
    """A pair that a resizing makes equal trains; others are refused, after the resizing too."""
    write(tmp_path, [IDS[:20, :24]])
    if fits:
        sample = load(tmp_path, [*LOAD, *resize, PACK])[0]
        assert sample['inputs'].shape[1:] == sample['data_samples'].gt_sem_seg.data.shape[1:]
    else:
        with pytest.raises(ImageFileError, match='is 20 x 24 .height x width., but its image'):
            load(tmp_path, [*LOAD, PACK])
    write(tmp_path, [IDS[:20]])
    if not any(step['keep_ratio'] is False for step in resize):
        with pytest.raises(ImageFileError, match='height x width'):
            load(tmp_path, [*LOAD, *resize, PACK])


def test_missing_files_that_the_loader_leaves_out(tmp_path):
    write(tmp_path, [IDS, IDS])
    (tmp_path / 'images/0.png').unlink()
    lenient = [dict(LOAD[0], ignore_empty=True), LOAD[1], PACK]
    assert len(load(tmp_path, lenient)) == 2
    with pytest.raises(FileNotFoundError, match=r'1 are not there, the first is .*images/0\.png'):
        load(tmp_path)


def test_label_maps_that_no_step_loads_are_not_looked_for(tmp_path):
    write(tmp_path, [IDS])
    (tmp_path / 'labels/0.png').unlink()
    assert len(load(tmp_path, [LOAD[0], PACK])) == 1


# --- formats


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_float32_tiff(tmp_path, channels):
    path = str(tmp_path / 'a.tif')
    array = RNG.random((40, 48, channels), dtype=np.float32)
    assert cv2.imwrite(path, array, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    assert image_file_error(path) is None
    assert check_images(tmp_path)[0].found == '1 of 1 images are undamaged'
    steps = [dict(LOAD[0], color_type='unchanged'), LOAD[1], PACK]
    write(tmp_path, [IDS])
    (tmp_path / 'images/0.tif').write_bytes((tmp_path / 'a.tif').read_bytes())
    loaded = load(tmp_path, steps, img_suffix='.tif')[0]['inputs']
    assert torch.equal(loaded, torch.from_numpy(array).permute(2, 0, 1))
    # Still found if it is cut off.
    (tmp_path / 'images/0.tif').write_bytes((tmp_path / 'a.tif').read_bytes()[:3000])
    with pytest.raises(ImageFileError, match=r'img_path: .*images/0\.tif '):
        load(tmp_path, steps, img_suffix='.tif')


@pytest.mark.parametrize(('kind', 'suffix'), [('tiff', 'tif'), ('png', 'png'), ('jpeg', 'jpg')])
def test_more_pixels_than_pillow_allows(tmp_path, monkeypatch, kind, suffix):
    """With bytes behind the end, so that they are decoded; the limit of 179 million pixels is lowered instead."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    path = tmp_path / f'a.{suffix}'
    content = encoded(IMAGE, kind)
    path.write_bytes(content + bytes(20))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert image_file_error(str(path)) is None
    assert image_file_error(str(path), before_loading=True) is None
    assert decoding_error(path) == ''
    assert read_image(str(path)).shape == (40, 48, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    path.write_bytes(content[:len(content) // 2])
    assert 'is damaged or no image' in image_file_error(str(path))


def test_label_maps_beyond_the_limit_say_how_to_lift_it(tmp_path, monkeypatch):
    write(tmp_path, [IDS])
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(ImageFileError, match=r"DecompressionBombError.*Set imdecode_backend='cv2'"):
        load(tmp_path)
    assert ids_of(load(tmp_path, [LOAD[0], dict(LOAD[1], imdecode_backend='cv2'), PACK])[0]) == {0, 1, 2, 3}


# --- switches


def test_every_check_is_on_unless_it_is_named():
    assert enabled_checks({}) == frozenset(DATA_CHECKS)
    some = enabled_checks(dict(data_checks=dict(label_maps=False, class_count=True)))
    assert some == set(DATA_CHECKS) - {'label_maps'}
    assert enabled_checks(dict(data_checks=False)) == frozenset()
    with pytest.raises(ValueError, match=r'missing_files, .* to True or False, got labels=False, class_count=0'):
        enabled_checks(dict(data_checks=dict(labels=False, class_count=0)))


def ignore_all(folder, cfg):
    write(folder, [np.full_like(IDS, 255)] * 2)


def other_count(folder, cfg):
    cfg.train_dataloader.dataset.metainfo = dict(classes=CLASSES[:3], palette=PALETTE[:3])
    write(folder, [np.minimum(IDS, 2)] * 2)


@pytest.mark.parametrize(('name', 'change', 'words'), [
    ('label_maps', ignore_all, 'ignored pixels only'),
    ('class_count', other_count, 'has 3 classes'),
])
def test_a_check_is_switched_off_by_the_name_in_its_message(tmp_path, name, change, words):
    write(tmp_path, [IDS, IDS])
    cfg = seg_config(tmp_path)
    change(tmp_path, cfg)
    with pytest.raises(ValueError, match=words) as error:
        run(cfg.copy(), 'train')
    assert str(error.value).endswith(f'switch this check off: --cfg-options data_checks.{name}=False')
    cfg.merge_from_dict({f'data_checks.{name}': False})
    run(cfg, 'train')
    assert (tmp_path / 'work/epoch_1.pth').is_file()


def test_without_the_check_a_damaged_image_is_the_loaders_affair(tmp_path):
    write(tmp_path, [IDS])
    content = encoded(IMAGE, 'jpeg', quality=95)
    (tmp_path / 'images/0.png').write_bytes(content[:int(0.6 * len(content))])
    with pytest.raises(ImageFileError, match=r'is damaged or no image .*data_checks\.damaged_images=False'):
        load(tmp_path)
    with pytest.raises(AssertionError, match='failed to load image'):
        load(tmp_path, checks=set(DATA_CHECKS) - {'damaged_images'})


def test_loaders_without_num_workers(tmp_path):
    """mmpretrain's defaults are put in by our launch; PyTorch's default is 0 workers."""
    (tmp_path / 'c.py').write_text("default_scope = 'mmpretrain'\ntrain_dataloader = dict(batch_size=2)\n"
                                   "val_dataloader = dict(batch_size=2, num_workers=1)\ntest_dataloader = None\n")
    cfg = load_config(str(tmp_path / 'c.py'))
    assert cfg.train_dataloader.persistent_workers is False
    assert cfg.val_dataloader.persistent_workers is True
    assert cfg.train_dataloader.collate_fn == cfg.val_dataloader.collate_fn == dict(type='default_collate')
