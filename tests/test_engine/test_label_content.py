"""Label maps that nothing can be learned from are refused at the start; maps that show little are not."""

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from pelk_mm.engine.data_checks import ImageFileError
from pelk_mm.engine.image_files import check_when_loading
from pelk_mm.engine.label_maps import check_label_content
from pelk_mm.engine.loaders import find_loader

TWO = dict(classes=('background', 'cell'), palette=[(0, 0, 0), (255, 0, 0)])
THREE = dict(classes=('background', 'cell', 'nucleus'), palette=[(0, 0, 0), (255, 0, 0), (0, 255, 0)])


def dataset_of(folder, maps, metainfo=TWO, steps=(), **options):
    """A data set of maps with these ids in each of two rows."""
    (folder / 'labels').mkdir(parents=True)
    for number, ids in enumerate(maps):
        Image.fromarray(np.array([ids, ids], np.uint8)).save(folder / f'labels/{number}.png')
    (folder / 'list.txt').write_text('\n'.join(map(str, range(len(maps)))))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), *steps, dict(type='PackSegInputs')]
    config = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        ann_file='list.txt',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=metainfo,
        pipeline=pipeline)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build({**config, **options})


@pytest.mark.parametrize(('maps', 'options', 'words'), [
    ([(0, 255), (0, 0), (255, 255)], {}, 'all 3 label maps of BaseSegDataset (2 classes; '),
    ([(0, 255), (0, 0)], {}, "nothing except 'background' and ignored pixels"),
    ([(0, 255)] * 12, dict(metainfo=THREE), 'write the class ids 0, 1, ... instead'),
    ([(255, 255)] * 2, {}, 'have ignored pixels only, so there is nothing to learn or to measure'),
    ([(0, 255)] * 2, dict(reduce_zero_label=True), 'ignored pixels only'),
    ([(0, 0)] * 2, dict(reduce_zero_label=True), 'Set it to False if 0 is a class'),
    ([(7, 7)] * 2, dict(ignore_index=7), '7 in the files is ignored'),
])
def test_nothing_to_learn(tmp_path, maps, options, words):
    dataset = dataset_of(tmp_path, maps, **options)
    with pytest.raises(ImageFileError, match=r'data_checks\.label_maps=False$') as error:
        check_label_content([dataset])
    assert words in str(error.value)


@pytest.mark.parametrize(('maps', 'options'), [
    # One object pixel, in the last map.
    ([(0, 255)] * 30 + [(1, 255)], {}),
    # Nothing but background is little, but nothing is ignored.
    ([(0, 0)] * 3, {}),
    # Labels of one class only, as for a data set that others complete.
    ([(1, 255)] * 3, {}),
    # A few maps with all of the first class, where 0 is ignored by design.
    ([(0, 1)] * 2, dict(reduce_zero_label=True)),
    ([(0, 1, 2)] * 2, dict(reduce_zero_label=True)),
    ([(0, 255)] * 2, dict(metainfo=dict(classes=('cell', ), palette=[(255, 0, 0)]))),
    ([(0, 255)] * 2, dict(ignore_index=7)),
    # A transform of somebody's own may make classes of them.
    ([(0, 255)] * 2, dict(steps=[np.copy])),
    ([(0, 255)] * 2, dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')])),
])
def test_something_to_learn(tmp_path, maps, options):
    check_label_content([dataset_of(tmp_path, maps, **options)])


def test_ids_that_the_model_ignores_count(tmp_path):
    dataset = dataset_of(tmp_path, [(0, 2)] * 2, metainfo=THREE)
    check_label_content([dataset])
    with pytest.raises(ImageFileError, match='2, 255|2 in the files is ignored'):
        check_label_content([dataset], ignored=[2])


def test_data_sets_of_one_loader_complete_each_other(tmp_path):
    one = dataset_of(tmp_path / 'a', [(0, 255)] * 2)
    with pytest.raises(ImageFileError, match='all 2 label maps'):
        check_label_content([one])
    check_label_content([one, dataset_of(tmp_path / 'b', [(0, 1)])])
    check_label_content([one, object()])


def test_reading_stops_where_a_second_class_shows(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path, [(0, 1)] * 40)
    seen = []
    get = dataset.get_data_info
    monkeypatch.setattr(dataset, 'get_data_info', lambda index: seen.append(index) or get(index))
    check_label_content([dataset])
    assert seen == [0]
    step, following = find_loader(dataset, 'seg_map_path')
    assert type(step).__name__ == 'LoadAnnotations'
    assert [type(each).__name__ for each in following] == ['PackSegInputs']


@pytest.mark.parametrize(('ids', 'options', 'words'), [
    ((0, 128, 255), dict(metainfo=THREE), 'has the ids 128, .* grey values that stand for classes, write 0, 1, 2'),
    ((0, 127, 254), dict(metainfo=THREE), 'has the ids 127, 254, which are of no class'),
    ((1, 2, 2), {}, 'has the ids 2, .* 1 is the first class, as in ADE20K, set reduce_zero_label=True'),
    ((1, 2, 3), dict(metainfo=THREE), 'has the ids 3, which .* set reduce_zero_label=True'),
    ((0, 1, 4), dict(metainfo=THREE, reduce_zero_label=True), 'has the ids 4, which .*1 is the first class'),
])
def test_ids_beyond_the_classes(tmp_path, ids, options, words):
    dataset = dataset_of(tmp_path, [ids], **options)
    (tmp_path / 'images').mkdir()
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / 'images/0.jpg')
    check_label_content([dataset])
    check_when_loading(dataset)
    with pytest.raises(ImageFileError, match=rf'labels/0\.png {words}'):
        dataset[0]
