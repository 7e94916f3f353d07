"""Small image files, label maps and data sets for the tests of the checks of data."""

import io
import json
from types import SimpleNamespace

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from pelk_mm.engine.data_checks import DATA_CHECKS
from pelk_mm.engine.image_files import build_checked_dataloader
from pelk_mm.testing.tiny_models import CLASSES, PALETTE, tiny_config

RNG = np.random.default_rng(0)
# It does not compress to a few bytes.
IMAGE = RNG.integers(0, 255, (40, 48, 3), dtype=np.uint8)
IDS = RNG.integers(0, 4, (40, 48), dtype=np.uint8)
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
PACK = dict(type='PackSegInputs')


def encoded(array=IMAGE, kind='png', share=1.0) -> bytes:
    """The first bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **(dict(quality=95) if kind == 'jpeg' else {}))
    return buffer.getvalue()[:int(share * len(buffer.getvalue()))]


def rows(*values, dtype=np.uint8):
    """A label map of 40 x 48 pixels, the first rows of these values and the rest 0."""
    labels = np.zeros((40, 48), dtype)
    labels[:len(values)] = np.reshape(values, (-1, 1))
    return labels


def write(file, array=IMAGE, share=1.0):
    """Write the first bytes of an image file, of the kind that its suffix says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(array, dict(jpg='jpeg').get(file.suffix[1:], 'png'), share))


def seg_dataset(folder, steps=(*LOAD, PACK), classes=4, **options):
    """A data set of mmseg, of what ``folder/list.txt`` names in the folders ``images`` and ``labels``."""
    config = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        ann_file='list.txt',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        metainfo=dict(classes=tuple('abcdefg'[:classes]), palette=[(i, 0, 0) for i in range(classes)]),
        pipeline=list(steps))
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build({**config, **options})


def checked_samples(*args, checks=tuple(DATA_CHECKS), ignored=(), **options):
    """All samples of a loader with checks, as a run builds it, of :func:`seg_dataset` with the other arguments."""

    def build(dataloader):
        return SimpleNamespace(dataset=seg_dataset(*args, **options))

    dataset = build_checked_dataloader(build, {}, checks=checks, ignored=ignored).dataset
    return [dataset[index] for index in range(len(dataset))]


def ids_of(sample):
    """The ids in the label map of a sample."""
    return set(sample['data_samples'].gt_sem_seg.data.unique().tolist())


def task_config(task, folder, **options):
    """A config that trains and tests on one image in a folder, for each class in classification."""
    cfg = tiny_config(task).to_dict()
    dataset = cfg['test_dataloader']['dataset']
    write(folder / 'train/ant/a.jpg')
    loader = dict(cfg['test_dataloader'], num_workers=0)
    if task == 'classification':
        for name in CLASSES[1:]:
            write(folder / 'train' / name / 'a.jpg')
        dataset.update(data_prefix='train', classes=CLASSES, with_label=True)
        loader.update(num_workers=2, collate_fn=dict(type='default_collate'))
        cfg['test_evaluator'] = dict(type='Accuracy')
    elif task == 'segmentation':
        write(folder / 'labels/a.png', rows(1, 2, 3))
        dataset.update(data_prefix=dict(img_path='train/ant', seg_map_path='labels'))
        dataset['metainfo'] = dict(classes=CLASSES, palette=PALETTE)
        cfg['test_evaluator'] = dict(type='IoUMetric')
    else:
        box = dict(id=1, image_id=1, category_id=1, bbox=[2, 2, 20, 20], area=400, iscrowd=0)
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
        images = [dict(id=1, file_name='a.jpg', height=40, width=48)]
        (folder / 'a.json').write_text(json.dumps(dict(images=images, annotations=[box], categories=categories)))
        dataset.update(ann_file='a.json', data_prefix=dict(img='train/ant'))
        load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
        dataset['pipeline'] = [*load, dict(type='PackDetInputs')]
        cfg['test_evaluator'] = dict(type='CocoMetric', ann_file=str(folder / 'a.json'))
    dataset.update(data_root=str(folder), **options)
    # Two samples of batch normalisation.
    train = dict(loader, batch_size=2, dataset=dict(type='RepeatDataset', times=2, dataset=dict(dataset)))
    cfg.update(test_dataloader=dict(loader, dataset=dataset), train_dataloader=train, custom_hooks=[])
    cfg.update(train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)))
    return Config(dict(cfg, work_dir=str(folder / 'work')))
