"""COCO files that cannot be read, learned from or measured are refused with a fix; what mmdet uses passes."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pelk_mm.engine.annotation_files import OFF, check_annotation_files

CLASSES = ('cat', 'dog')
BOX = dict(category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0, segmentation=[[1, 1, 5, 1, 5, 5]])
GOOD = dict(
    images=[dict(id=7, file_name='a.png', height=8, width=8), dict(id=9, file_name='b.png', height=8, width=8)],
    annotations=[dict(BOX, id=1, image_id=7), dict(BOX, id=2, image_id=7, category_id=2), dict(BOX, id=3, image_id=9)],
    categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])


def changed(keep=0, part='annotations', **values) -> dict:
    """The good file with values in all entries of a part after the first ``keep``; None takes a key out."""
    content = copy.deepcopy(GOOD)
    for item in content[part][keep:]:
        item.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del item[key]
    return content


def with_parts(**parts) -> dict:
    """The good file with other parts; None takes one out."""
    return {key: value for key, value in copy.deepcopy(dict(GOOD, **parts)).items() if value is not None}


def renumbered(number) -> dict:
    return with_parts(annotations=[dict(item, id=number(item['id'])) for item in GOOD['annotations']])


def config(folder, content=None, mode='train', wrapped=False, metric='bbox', **dataset) -> Config:
    """A run that reads ``content`` in its data set and, in validation and test, its metric."""
    if content is not None:
        (folder / 'x.json').write_text(json.dumps(content))
    pipeline = [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    dataset = dict(
        dict(metainfo=dict(classes=CLASSES), ann_file='x.json', pipeline=pipeline), type='CocoDataset',
        data_root=str(folder), **dataset)
    if wrapped:
        dataset = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[dataset]))
    cfg = {f'{mode}_dataloader': dict(dataset=dataset)}
    if mode != 'train':
        cfg[f'{mode}_evaluator'] = dict(type='CocoMetric', ann_file=str(folder / 'x.json'), metric=metric)
    return Config(dict(cfg, default_scope='mmdet'))


def refusal(folder, content: bytes, with_mask=False, may_be_empty=False) -> str:
    """The message of the check of a file of this content, '' if it passes; one for tests may be empty."""
    file, mode = folder / 'x.json', 'test' if may_be_empty else 'train'
    file.write_bytes(content)
    cfg = config(folder, mode=mode, **({} if with_mask else dict(pipeline=[])))
    try:
        check_annotation_files(cfg, (mode, ))
    except ValueError as error:
        message = str(error)
    else:
        return ''
    assert f'ann_file: {file}' in message
    return message


@pytest.mark.parametrize(('content', 'words'), [
    ('', 'is empty: unpack or make it again'),
    (json.dumps(GOOD)[:100], 'is damaged (100 bytes; '),
    ('[1]', 'got a list: it is another format than COCO'),
    (with_parts(annotations=None), 'lacks annotations; it has categories, images. Name a file of COCO'),
    (with_parts(images=[]), 'lists no images'),
    (with_parts(annotations=[]), 'has 2 images, but no annotations'),
    (changed(1, bbox=None), 'entry 1 of annotations (id 2) lacks bbox'),
    (changed(1, bbox=[1, 2, 3]), 'bbox of entry 1 of annotations must be [x, y, width, height], got [1, 2, 3]'),
    (changed(part='images', height=None), 'entry 0 of images (id 7) lacks height'),
    (changed(image_id=[7]), 'image_id of entry 0 of annotations must be a number or a text, got [7]'),
    (changed(area='16'), "area of entry 0 of annotations must be a number, got '16'"),
    (with_parts(categories=GOOD['categories'][:1]), "has no category 'dog' of metainfo.classes (1 are missing)"),
    (changed(2, segmentation=None), '1 of 3 annotations, the first has id 3, have no segmentation, but the pipeline'),
    (changed(1, segmentation=[]), '2 of 3 annotations, the first has id 2, have no segmentation, but the pipeline '
     'loads masks (with_mask=True). Use a file with masks, or for boxes only set with_mask=False'),
    # Ids that name two things.
    (changed(id=1), '2 annotations have an id that a later one has too, the first is 1: boxes would go to other'),
    (changed(part='images', id=7), "two images, 'a.png' and 'b.png', have the id 7"),
    (changed(part='categories', id=1), "two categories, 'cat' and 'dog', have the id 1"),
    (with_parts(categories=[*GOOD['categories'], dict(id=3, name='dog')]), "has 2 categories named 'dog', with an id"),
])
def test_errors_come_with_a_fix(tmp_path, content, words):
    content = content if isinstance(content, str) else json.dumps(content)
    assert words in refusal(tmp_path, content.encode(), with_mask=True)


@pytest.mark.parametrize(('content', 'words'), [
    (changed(image_id=5), '3 annotations: 3 have an image_id that is of no image of the file. image_id is 5, but the '
     'ids of images are 7, 9'),
    (changed(image_id='7'), "image_id is '7', but the ids of images are 7, 9"),
    (changed(category_id=90), '3 have a category_id that is of no category of the classes. category_id is 90, but the '
     'ids of categories are 1, 2'),
    (changed(category_id='1'), "category_id is '1', but the ids of categories are 1, 2"),
    *((changed(bbox=box), '3 have a bbox or area without size inside the image')
      for box in ([1, 1, 0, 4], [5, 5, -4, -4], [20, 20, 4, 4], [0.1, 0.1, 0.4, 0.4])),
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
    GOOD, changed(1, image_id=5), changed(1, category_id=90), changed(1, bbox=[1, 1, 0, 0]), changed(1, iscrowd=1),
    # What mmdet leaves out may lack its mask.
    changed(1, image_id=5, segmentation=None), changed(1, ignore=1, segmentation=None),
    changed(1, category_id=90, segmentation=[]), changed(1, area=0, segmentation=None),
    # Needed by the evaluation only.
    changed(iscrowd=None), renumbered(lambda number: number - 1), renumbered(lambda number: f'n{number}'),
    # Texts as ids, everywhere.
    json.loads(json.dumps(GOOD).replace('"id": 7', '"id": "7"').replace('"image_id": 7', '"image_id": "7"')),
    with_parts(images=[*GOOD['images'], GOOD['images'][0]]), changed(segmentation=dict(size=[8, 8], counts='08')),
])
def test_something_to_learn(tmp_path, content):
    check_annotation_files(config(tmp_path, content), ('train', ))
    # The same is refused once nothing of it is left.
    cfg = config(tmp_path, dict(content, images=[dict(content['images'][0], id=99)]))
    with pytest.raises(ValueError, match='have an image_id that is of no image'):
        check_annotation_files(cfg, ('train', ))


@pytest.mark.parametrize(('content', 'words'), [
    (renumbered(lambda number: number - 1),
     '1 of 3 annotations, the first has id 0, have an id that is 0 or no number: pycocotools counts what is matched'),
    (renumbered(lambda number: f'n{number}'), "id 'n1', have an id"),
    (changed(iscrowd=None), '3 of 3 annotations, the first has id 1, lack a number as iscrowd'),
    (changed(2, iscrowd=None), '1 of 3 annotations, the first has id 3, lack a number as iscrowd'),
    (changed(iscrowd='0'), 'lack a number as iscrowd'),
    (changed(iscrowd=1), 'nothing to measure in 3 annotations: 3 have iscrowd=1'),
])
def test_unmeasurable_files(tmp_path, content, words):
    cfg = config(tmp_path, content, 'test')
    with pytest.raises(ValueError, match='test_evaluator.ann_file: .*/x.json: ') as error:
        check_annotation_files(cfg, ('test', ))
    assert words in str(error.value)
    # A metric that only writes results, or takes what the data set has loaded, needs nothing of it.
    cfg.test_evaluator.update(format_only=True, outfile_prefix='x')
    check_annotation_files(cfg, ('test', ))
    cfg.test_evaluator = [dict(type='CocoMetric', metric='bbox')]
    check_annotation_files(cfg, ('test', ))


@pytest.mark.parametrize('segmentation', [None, [], [[1, 1]]])
def test_masks_are_needed_where_masks_are_measured(tmp_path, segmentation):
    cfg = config(tmp_path, changed(1, segmentation=segmentation), 'test')
    cfg.test_dataloader.dataset.pipeline = []
    check_annotation_files(cfg, ('test', ))
    cfg.test_evaluator = dict(metrics=[dict(cfg.test_evaluator, metric=['bbox', 'segm'])])
    with pytest.raises(ValueError, match='2 of 3 annotations, the first has id 2, have no segmentation, but masks'):
        check_annotation_files(cfg, ('test', ))


def average_precision(folder, content) -> float:
    """Of predictions that are the annotations themselves."""
    (folder / 'x.json').write_text(json.dumps(content))
    truth = COCO(str(folder / 'x.json'))
    keys = ('image_id', 'category_id', 'bbox')
    found = [dict({key: item[key] for key in keys}, score=0.9) for item in content['annotations']]
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def test_why_id_0_is_refused(tmp_path):
    """Perfect predictions are not perfect; a crowd with id 0 does no harm and passes."""
    assert average_precision(tmp_path, GOOD) == pytest.approx(1)
    assert average_precision(tmp_path, renumbered(lambda number: number - 1)) < 0.9
    crowd = with_parts(annotations=[*GOOD['annotations'], dict(BOX, id=0, image_id=9, iscrowd=1)])
    check_annotation_files(config(tmp_path, crowd, 'test'), ('test', ))
    crowd['annotations'][-1]['bbox'] = [0, 0, 8, 8]
    assert average_precision(tmp_path, crowd) == pytest.approx(1)


@pytest.mark.parametrize('wrapped', [False, True])
def test_files_are_found_in_the_config(tmp_path, wrapped):
    cfg = config(tmp_path, wrapped=wrapped)
    with pytest.raises(FileNotFoundError, match=r'train_dataloader.dataset.ann_file: .*x\.json.*check_dataset\.py'):
        check_annotation_files(cfg, ('train', 'val'))
    check_annotation_files(config(tmp_path, GOOD, wrapped=wrapped), ('train', 'val'))
    config(tmp_path, changed(1, segmentation=None))
    with pytest.raises(ValueError, match=r'x\.json: 2 of 3 annotations, .* have no segmentation'):
        check_annotation_files(cfg, ('train', 'val'))
    check_annotation_files(cfg, ('test', ))


def test_classes_are_those_of_the_type_unless_the_config_says_others(tmp_path):
    cfg = config(tmp_path, GOOD)
    del cfg.train_dataloader.dataset.metainfo
    with pytest.raises(ValueError, match=r"no category 'person', 'bicycle'.*\(78 are missing\)"):
        check_annotation_files(cfg, ('train', ))
    # Files elsewhere are left to the run.
    cfg.train_dataloader.dataset.data_root = 's3://bucket'
    check_annotation_files(cfg, ('train', ))


def test_files_of_images_without_objects(tmp_path):
    """They are learned from together with others, and tested on."""
    empty = config(tmp_path, with_parts(annotations=[])).train_dataloader.dataset
    assert refusal(tmp_path, json.dumps(with_parts(annotations=None)).encode(), may_be_empty=True) == ''
    config(tmp_path, GOOD)
    (tmp_path / 'x.json').rename(tmp_path / 'y.json')
    config(tmp_path, with_parts(annotations=[]))
    for datasets, words in (([empty], 'has 2 images, but no annotations'), ([empty, empty], 'nothing to learn in 0'),
                            ([empty, dict(empty, ann_file='y.json')], '')):
        dataset = empty if len(datasets) == 1 else dict(type='ConcatDataset', datasets=datasets)
        cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))
        if words:
            with pytest.raises(ValueError, match=words):
                check_annotation_files(cfg, ('train', ))
        else:
            check_annotation_files(cfg, ('train', ))


def test_classes_that_read_files_in_their_own_way_are_not_checked(tmp_path):
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


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just(10**400)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(['id', 'name', 'images', 'bbox', 'file_name', 'x']), inner, max_size=3)),
    max_leaves=6)
OPTIONS = st.fixed_dictionaries(dict(with_mask=st.booleans(), may_be_empty=st.booleans()))
DEEP = st.sampled_from([b'[' * 100_000, b'{"a":' * 100_000, b'9' * 5000, b'\xef\xbb\xbf{}'])
ANYTHING = st.one_of(VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60), DEEP)


@st.composite
def mutated(draw):
    """Good content with some of its parts, at any depth, replaced or taken out."""
    content = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        node = content
        while node:
            key = draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
            if isinstance(node[key], (dict, list)) and draw(st.booleans()):
                node = node[key]
                continue
            if draw(st.booleans()):
                node[key] = draw(VALUES)
            else:
                del node[key]
            break
    return content


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('coco')


@given(mutated(), OPTIONS)
def test_mutated_content(folder, content, options):
    if not refusal(folder, json.dumps(content).encode(), **options):
        # What passes has what mmdet reads.
        assert {category['name'] for category in content['categories']} >= {'cat', 'dog'}
        assert all(set(image) >= {'id', 'file_name', 'height', 'width'} for image in content['images'])
        assert all(len(item['bbox']) == 4 for item in content.get('annotations') or ())


@given(ANYTHING, OPTIONS)
def test_anything(folder, content, options):
    assert refusal(folder, content, **options)
