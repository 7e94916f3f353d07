"""COCO files with nothing to learn or to measure are refused with numbers; what mmdet and pycocotools use passes."""

import copy
import json

import pytest
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pelk_mm.engine.annotation_files import check_annotation_files, check_coco_file
from pelk_mm.engine.coco_file import OFF

CLASSES = ('cat', 'dog')
BOX = dict(category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0, segmentation=[[1, 1, 5, 1, 5, 5]])
GOOD = dict(
    images=[dict(id=7, file_name='a.png', height=8, width=8), dict(id=9, file_name='b.png', height=8, width=8)],
    annotations=[dict(BOX, id=1, image_id=7), dict(BOX, id=2, image_id=7, category_id=2), dict(BOX, id=3, image_id=9)],
    categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])


def changed(keep=0, **values) -> dict:
    """The good file with values in all of its annotations after the first ``keep``; None takes a key out."""
    content = copy.deepcopy(GOOD)
    for item in content['annotations'][keep:]:
        item.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del item[key]
    return content


def with_parts(**parts) -> dict:
    return dict(copy.deepcopy(GOOD), **parts)


def config(folder, content, mode='train', **metric) -> Config:
    """A run that reads ``content`` in its data set and, in validation, its metric."""
    (folder / 'x.json').write_text(json.dumps(content))
    dataset = dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='x.json',
        metainfo=dict(classes=CLASSES),
        pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)])
    cfg = {f'{mode}_dataloader': dict(dataset=dataset)}
    if mode != 'train':
        cfg[f'{mode}_evaluator'] = dict(type='CocoMetric', ann_file=str(folder / 'x.json'), metric='bbox', **metric)
    return Config(dict(cfg, default_scope='mmdet'))


def average_precision(folder, content) -> float:
    """Of predictions that are the annotations themselves."""
    (folder / 'x.json').write_text(json.dumps(content))
    truth = COCO(str(folder / 'x.json'))
    found = truth.loadRes([
        dict(image_id=item['image_id'], category_id=item['category_id'], bbox=item['bbox'], score=0.9)
        for item in content['annotations']
    ])
    evaluation = COCOeval(truth, found, 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize(('content', 'words'), [
    (changed(image_id=5), '3 annotations: 3 have an image_id that is of no image of the file. image_id is 5, but the '
     'ids of images are 7, 9'),
    (changed(image_id='7'), "image_id is '7', but the ids of images are 7, 9"),
    (changed(category_id=90), '3 have a category_id that is of no category of the classes. category_id is 90, but the '
     'ids of categories are 1, 2'),
    (changed(category_id='1'), "category_id is '1', but the ids of categories are 1, 2"),
    (changed(bbox=[1, 1, 0, 4]), '3 have a bbox or area without size inside the image'),
    (changed(bbox=[5, 5, -4, -4]), '3 have a bbox or area without size'),
    (changed(bbox=[20, 20, 4, 4]), '3 have a bbox or area without size'),
    (changed(bbox=[0.1, 0.1, 0.4, 0.4]), '3 have a bbox or area without size'),
    (changed(area=0), '3 have a bbox or area without size'),
    (changed(iscrowd=1), '3 have iscrowd=1 or ignore=1'),
    (changed(ignore=1), '3 have iscrowd=1 or ignore=1'),
    (changed(segmentation=[[1, 1, 5, 5]]), '3 have no polygon of three points or more'),
    (changed(segmentation=[[]]), '3 have no polygon of three points or more'),
    (with_parts(annotations=[changed(image_id=5)['annotations'][0], changed(area=0)['annotations'][1]]),
     'nothing to learn in 2 annotations: 1 have'),
])
def test_nothing_to_learn(tmp_path, content, words):
    for mode in ('train', 'val'):
        with pytest.raises(ValueError, match=f'{mode}_dataloader.dataset.ann_file: .*: there is nothing') as error:
            check_annotation_files(config(tmp_path, content, mode), (mode, ))
        assert words in str(error.value)
        assert str(error.value).endswith(OFF)


@pytest.mark.parametrize('content', [
    changed(1, image_id=5), changed(1, category_id=90), changed(1, bbox=[1, 1, 0, 0]), changed(1, iscrowd=1),
    # What mmdet leaves out may lack its mask.
    changed(1, image_id=5, segmentation=None), changed(1, ignore=1, segmentation=None),
    changed(1, category_id=90, segmentation=[]), changed(1, area=0, segmentation=None),
    # Needed by the evaluation only.
    changed(iscrowd=None), with_parts(annotations=[dict(item, id=item['id'] - 1) for item in GOOD['annotations']]),
    with_parts(annotations=[dict(item, id=f'n{item["id"]}') for item in GOOD['annotations']]),
    # Texts as ids, everywhere.
    json.loads(json.dumps(GOOD).replace('"id": 7', '"id": "7"').replace('"image_id": 7', '"image_id": "7"')),
    with_parts(images=[*GOOD['images'], GOOD['images'][0]]), changed(segmentation=dict(size=[8, 8], counts='08')),
])
def test_something_to_learn(tmp_path, content):
    check_annotation_files(config(tmp_path, content), ('train', ))


@pytest.mark.parametrize(('content', 'words'), [
    (with_parts(annotations=[dict(item, id=item['id'] - 1) for item in GOOD['annotations']]),
     '1 of 3 annotations, the first has id 0, have an id that is 0 or no number: pycocotools counts what is matched'),
    (with_parts(annotations=[dict(item, id=f'n{item["id"]}') for item in GOOD['annotations']]), "id 'n1', have an id"),
    (changed(iscrowd=None), '3 of 3 annotations, the first has id 1, lack a number as iscrowd'),
    (changed(2, iscrowd=None), '1 of 3 annotations, the first has id 3, lack a number as iscrowd'),
    (changed(iscrowd='0'), 'lack a number as iscrowd'),
    (changed(iscrowd=1), 'nothing to measure in 3 annotations: 3 have iscrowd=1'),
])
def test_what_cannot_be_measured(tmp_path, content, words):
    cfg = config(tmp_path, content, 'test')
    with pytest.raises(ValueError, match='test_evaluator.ann_file: .*/x.json: ') as error:
        check_annotation_files(cfg, ('test', ))
    assert words in str(error.value)
    # A metric that only writes results, or takes what the data set has loaded, needs nothing of it.
    cfg.test_evaluator.update(format_only=True, outfile_prefix='x')
    check_annotation_files(cfg, ('test', ))
    cfg.test_evaluator = [dict(type='CocoMetric', metric='bbox')]
    check_annotation_files(cfg, ('test', ))


def test_masks_are_needed_where_masks_are_measured(tmp_path):
    for segmentation in (None, [], [[1, 1]]):
        cfg = config(tmp_path, changed(1, segmentation=segmentation), 'test')
        cfg.test_dataloader.dataset.pipeline = []
        check_annotation_files(cfg, ('test', ))
        cfg.test_evaluator = dict(metrics=[dict(cfg.test_evaluator, metric=['bbox', 'segm'])])
        with pytest.raises(ValueError, match='2 of 3 annotations, the first has id 2, have no segmentation, but masks'):
            check_annotation_files(cfg, ('test', ))


def test_why_id_0_is_refused(tmp_path):
    """Perfect predictions are not perfect; a crowd with id 0 does no harm and passes."""
    assert average_precision(tmp_path, GOOD) == pytest.approx(1)
    assert average_precision(tmp_path, with_parts(annotations=[dict(item, id=item['id'] - 1)
                                                               for item in GOOD['annotations']])) < 0.9
    crowd = with_parts(annotations=[*GOOD['annotations'], dict(BOX, id=0, image_id=9, iscrowd=1)])
    check_annotation_files(config(tmp_path, crowd, 'test'), ('test', ))
    crowd['annotations'][-1]['bbox'] = [0, 0, 8, 8]
    assert average_precision(tmp_path, dict(crowd)) == pytest.approx(1)


@pytest.mark.parametrize(('content', 'words'), [
    (with_parts(annotations=[dict(item, id=1) for item in GOOD['annotations']]),
     '2 annotations have an id that a later one has too, the first is 1: boxes would go to other images'),
    (with_parts(images=[dict(image, id=7) for image in GOOD['images']]), "two images, 'a.png' and 'b.png', have the id 7"),
    (with_parts(categories=[dict(id=1, name='cat'), dict(id=1, name='dog')]),
     "two categories, 'cat' and 'dog', have the id 1"),
    (with_parts(categories=[*GOOD['categories'], dict(id=3, name='dog')]),
     "has 2 categories named 'dog', with an id each"),
    (changed(image_id=[7]), 'image_id of entry 0 of annotations must be a number or a text, got [7]'),
    (changed(area='16'), "area of entry 0 of annotations must be a number, got '16'"),
])
def test_ids_that_name_two_things_or_nothing(tmp_path, content, words):
    (tmp_path / 'x.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='ann_file: ') as error:
        check_coco_file(str(tmp_path / 'x.json'), CLASSES)
    assert words in str(error.value)


def test_a_file_of_empty_images_beside_another(tmp_path):
    """Images without objects, as negatives or unlabelled, are learned from together with others."""
    cfg = config(tmp_path, with_parts(annotations=[]))
    empty = cfg.train_dataloader.dataset
    with pytest.raises(ValueError, match='has 2 images, but no annotations'):
        check_annotation_files(cfg, ('train', ))
    (tmp_path / 'y.json').write_text(json.dumps(GOOD))
    both = dict(type='ConcatDataset', datasets=[empty, dict(empty, ann_file='y.json')])
    check_annotation_files(Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=both))), ('train', ))
    both['datasets'][1]['ann_file'] = 'x.json'
    with pytest.raises(ValueError, match='nothing to learn in 0 annotations'):
        check_annotation_files(Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=both))), ('train', ))


def test_classes_that_read_files_in_their_own_way_are_left_alone(tmp_path):
    from mmdet.datasets import CocoDataset

    class Renamed(CocoDataset):
        """The same reading, other classes."""

    class Relaxed(CocoDataset):
        """Files that lack the size of boxes."""

        def parse_data_info(self, raw_data_info):
            return {}

    cfg = config(tmp_path, changed(area=0))
    cfg.train_dataloader.dataset['type'] = Renamed
    with pytest.raises(ValueError, match='3 have a bbox or area without size'):
        check_annotation_files(cfg, ('train', ))
    cfg.train_dataloader.dataset['type'] = Relaxed
    check_annotation_files(cfg, ('train', ))
