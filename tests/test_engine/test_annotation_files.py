"""COCO files that cannot be trained on are refused at the start, with the file, the config key and the fix."""

import copy
import json

import pytest
from mmengine.config import Config

from pelk_mm.engine.annotation_files import check_annotation_files, check_coco_file

BOX = dict(image_id=7, category_id=1, bbox=[0, 0, 4, 4], area=16, iscrowd=0, segmentation=[[0, 0, 4, 0, 4, 4]])
GOOD = dict(
    images=[dict(id=7, file_name='a.png', height=8, width=8)],
    annotations=[dict(BOX, id=1), dict(BOX, id=2)],
    categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])


def changed(change) -> dict:
    content = copy.deepcopy(GOOD)
    change(content)
    return content


def check(tmp_path, content, **kwargs) -> str:
    """Write a file, check it, and return the message."""
    path = tmp_path / 'instances.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match='ann_file: ') as error:
        check_coco_file(str(path), classes=('cat', 'dog'), with_mask=True, **kwargs)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_good_file_passes(tmp_path):
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(GOOD))
    check_coco_file(str(path), classes=('dog', 'cat'), with_mask=True)


@pytest.mark.parametrize(('content', 'words'), [
    ('', 'is empty: unpack or make it again'),
    (json.dumps(GOOD)[:100], 'is damaged (100 bytes; '),
    ('[1]', 'got a list: it is another format than COCO'),
    (changed(lambda c: c.pop('annotations')), 'lacks annotations; it has categories, images. Name a file of COCO'),
    (changed(lambda c: c.update(images=[])), 'lists no images'),
    (changed(lambda c: c.update(annotations=[])), 'has 1 images, but no annotations'),
    (changed(lambda c: c['annotations'][1].pop('bbox')), 'entry 1 of annotations (id 2) lacks bbox'),
    (changed(lambda c: c['images'][0].pop('height')), 'entry 0 of images (id 7) lacks height'),
    (changed(lambda c: c['categories'].pop()), "has no category 'dog' of metainfo.classes (1 are missing)"),
    (changed(lambda c: c['annotations'][1].pop('segmentation')), '1 of 2 annotations'),
    (changed(lambda c: c['annotations'][1].update(segmentation=[])), 'the first has id 2, but the pipeline loads masks '
     '(with_mask=True). Use a file with masks, or for only boxes set with_mask=False'),
])
def test_errors_are_named_with_their_fix(tmp_path, content, words):
    assert words in check(tmp_path, content)


def test_a_test_set_may_lack_annotations(tmp_path):
    path = tmp_path / 'image_info.json'
    path.write_text(json.dumps(changed(lambda c: c.pop('annotations'))))
    check_coco_file(str(path), may_be_empty=True)


def config(tmp_path, wrapped: bool = False, **dataset) -> Config:
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='x.json',
        pipeline=[dict(type='mmdet.LoadAnnotations', with_mask=True)],
        **dataset)
    if wrapped:
        dataset = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[dataset]))
    return Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset), val_dataloader=None))


@pytest.mark.parametrize('wrapped', [False, True])
def test_files_are_found_in_the_config(tmp_path, wrapped):
    cfg = config(tmp_path, wrapped, metainfo=dict(classes=('cat', )))
    with pytest.raises(FileNotFoundError, match=r'train_dataloader.dataset.ann_file: .*x\.json.*check_dataset\.py'):
        check_annotation_files(cfg, ('train', 'val'))
    (tmp_path / 'x.json').write_text(json.dumps(GOOD))
    check_annotation_files(cfg, ('train', 'val'))
    (tmp_path / 'x.json').write_text(json.dumps(changed(lambda c: c['annotations'][0].pop('segmentation'))))
    with pytest.raises(ValueError, match=r'1 of 2 annotations in .*x\.json have no segmentation'):
        check_annotation_files(cfg, ('train', 'val'))
    check_annotation_files(cfg, ('test', ))


def test_classes_are_those_of_the_type_unless_the_config_says_others(tmp_path):
    (tmp_path / 'x.json').write_text(json.dumps(GOOD))
    with pytest.raises(ValueError, match=r"no category 'person', 'bicycle'.*\(78 are missing\)"):
        check_annotation_files(config(tmp_path), ('train', ))


def test_files_elsewhere_are_left_to_the_run():
    check_annotation_files(config('s3://bucket'), ('train', ))
