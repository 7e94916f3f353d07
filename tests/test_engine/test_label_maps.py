"""Label maps that do not fit or teach nothing are refused with a fix; what trains is not."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadAnnotations
from mmengine.registry import TRANSFORMS

from pelk_mm.engine.data_checks import ImageFileError
from pelk_mm.engine.label_maps import check_label_content
from pelk_mm.engine.loaders import find_loader

from .small_data import IDS, LOAD, PACK, checked_samples, ids_of, rows, seg_dataset, write


def write_maps(folder, maps):
    """Images and these label maps, arrays or the ids of one row."""
    for number, labels in enumerate(maps):
        write(folder / f'labels/{number}.png', labels if isinstance(labels, np.ndarray) else rows(*labels))
        write(folder / f'images/{number}.png')
    (folder / 'list.txt').write_text('\n'.join(map(str, range(len(maps)))))


def dataset_of(folder, maps, **options):
    write_maps(folder, maps)
    return seg_dataset(folder, **options)


def load(folder, maps, *args, **options):
    write_maps(folder, maps)
    return checked_samples(folder, *args, **options)


SOME_OF_ADE20K = dict(type='ADE20KDataset', metainfo=dict(classes=('wall', 'sky')))


@pytest.mark.parametrize(('labels', 'options', 'ids'), [
    ((0, 1, 2, 3, 255), {}, {0, 1, 2, 3, 255}),
    ((0, 1, 2, 3, 4), dict(reduce_zero_label=True), {0, 1, 2, 3, 255}),
    ((0, 3, 9), dict(ignore_index=9), {0, 3, 9}),
    ((0, 3, 7), dict(ignored=[7]), {0, 3, 7}),
    # Other classes of the type are ignored.
    ((0, 1, 3, 150), SOME_OF_ADE20K, {0, 1, 255}),
    (rows(0, 1, 2, dtype=np.uint16), {}, {0, 1, 2}),
    (rows(0, 1, 65535, dtype=np.uint16), {}, {0, 1, 255}),
])
def test_known_ids(tmp_path, labels, options, ids):
    assert ids_of(load(tmp_path, [labels], **options)[0]) == ids


@pytest.mark.parametrize(('labels', 'options', 'words'), [
    ((0, 4), {}, 'has the ids 4, which are of no class: BaseSegDataset has 4 classes, ids 0 ... 3, and 255 is ignored. '
     'Set metainfo.classes to what the ids mean, or make these the ignored id. If 0 in the files means "no class" and '
     '1 is the first class, as in ADE20K, set reduce_zero_label=True'),
    ((1, 2, 3), dict(classes=3), 'has the ids 3, which are of no class'),
    ((7, 9, 255), {}, 'has the ids 7, 9, which'),
    (range(20, 35), {}, 'has the ids 20, 21, 22, 23, 24, 25, 26, 27, ..., which'),
    ((0, 5, 6), dict(reduce_zero_label=True), 'has the ids 5, 6, which are of no class: BaseSegDataset has 4 classes, '
     'ids 1 ... 4, and 255 is ignored. Set metainfo.classes to what the ids mean, or make these the ignored id. '
     '(reduce_zero_label is True: 0 in the file is ignored, 1 is the first class)'),
    ((0, 128, 255), {}, 'If these and 255 are grey values that stand for classes, write 0, 1, 2, ... instead'),
    (np.zeros((40, 48, 3), np.uint8), {}, 'is a colour image, 40 x 48 x 3, not a map of class ids. Convert'),
    (rows(300, dtype=np.uint16), {}, 'has ids up to 300, of which 8 bits, 44 for example, would be kept'),
])
@pytest.mark.parametrize('packed', [True, False])
def test_unknown_ids_and_other_forms(tmp_path, labels, options, words, packed):
    with pytest.raises(ImageFileError, match=rf'seg_map_path: {tmp_path}/labels/0\.png ') as error:
        load(tmp_path, [labels], [*LOAD, *([PACK] if packed else [])], **options)
    assert words in str(error.value)
    assert str(error.value).endswith('switch this check off: --cfg-options data_checks.label_maps=False')


def test_test_time_augmentation(tmp_path):
    steps = [[dict(type='Resize', scale=(24, 20))], [LOAD[1]], [PACK]]
    with pytest.raises(ImageFileError, match='has the ids 9, which'):
        load(tmp_path, [(9, )], [LOAD[0], dict(type='TestTimeAug', transforms=steps)])


@pytest.mark.parametrize(('resize', 'fits'), [
    ([], False), ([dict(type='Resize', scale=(32, 32), keep_ratio=False)], True),
    ([dict(type='Resize', scale=(96, 80), keep_ratio=True)], True),
    ([dict(type='RandomResize', scale=(32, 32), ratio_range=(1.0, 1.0), keep_ratio=False)], True),
])
def test_label_maps_of_another_size(tmp_path, resize, fits):
    """A pair that a resizing makes equal trains; any other is refused, after the resizing too."""
    steps = [*LOAD, *resize, PACK]
    if fits:
        sample, = load(tmp_path, [IDS[:20, :24]], steps)
        assert sample['inputs'].shape[1:] == sample['data_samples'].gt_sem_seg.data.shape[1:]
    else:
        with pytest.raises(ImageFileError, match=rf'is 20 x 24 .height x width., but its image {tmp_path}/images/0\.png'
                           ' is 40 x 48. Check that they belong together'):
            load(tmp_path, [IDS[:20, :24]], steps)
    if not any(step['keep_ratio'] is False for step in resize):
        with pytest.raises(ImageFileError, match='height x width'):
            load(tmp_path, [IDS[:20]], steps)


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


def test_ids_of_16_bits_that_a_loader_decodes(tmp_path):
    wide = [IDS.astype(np.uint16) * 1000]
    assert ids_of(load(tmp_path, wide, [LOAD[0], dict(type='WideIdsOfTests'), PACK])[0]) == {0, 1, 2, 3}
    with pytest.raises(ImageFileError, match='has ids up to 3000, of which 8 bits, 184 for example, would be kept'):
        load(tmp_path, wide)


def test_grey_values_that_a_later_transform_turns_into_classes(tmp_path):
    steps = [*LOAD, dict(type='HalveOfTests'), PACK]
    assert [ids_of(sample) for sample in load(tmp_path, [(0, 255), (0, 128)], steps)] == [{0, 1}, {0, 1}]
    # What it leaves wrong is found where the sample is packed.
    with pytest.raises(ImageFileError, match=r'labels/0\.png has the ids 1, which are of no class'):
        load(tmp_path, [IDS + 200], steps, classes=1)


@pytest.mark.parametrize(('maps', 'options', 'words'), [
    ([(0, 255), (0, 0), (255, 255)], {}, 'all 3 label maps of BaseSegDataset (2 classes; '),
    ([(0, 255), (0, 0)], {}, "nothing except 'a' and ignored pixels"),
    ([(0, 255)] * 12, dict(classes=3), 'write the class ids 0, 1, ... instead'),
    ([IDS * 0 + 255] * 2, {}, 'have ignored pixels only, so there is nothing to learn or to measure'),
    ([(0, 255)] * 2, dict(reduce_zero_label=True), 'ignored pixels only'),
    ([(0, 0)] * 2, dict(reduce_zero_label=True), 'Set it to False if 0 is a class'),
    ([IDS * 0 + 7] * 2, dict(ignore_index=7), '7 in the files is ignored'),
    ([(0, 2)] * 2, dict(classes=3, ignored=[2]), '2 in the files is ignored'),
])
def test_nothing_to_learn(tmp_path, maps, options, words):
    ignored = options.pop('ignored', ())
    dataset = dataset_of(tmp_path, maps, **{'classes': 2, **options})
    with pytest.raises(ImageFileError, match=r'data_checks\.label_maps=False$') as error:
        check_label_content([dataset], ignored)
    assert words in str(error.value)
    # Another data set of the loader may complete it; of one that is not known, nothing is known.
    check_label_content([dataset, dataset_of(tmp_path / 'b', [(0, 1)], classes=2)], ignored)
    check_label_content([dataset, object()], ignored)


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
    ([(0, 255)] * 2, dict(classes=1)),
    ([(0, 255)] * 2, dict(ignore_index=7)),
    # A transform of somebody's own may make classes of them.
    ([(0, 255)] * 2, dict(steps=[*LOAD, np.copy, PACK])),
    ([(0, 255)] * 2, dict(steps=[LOAD[0], PACK])),
])
def test_something_to_learn(tmp_path, maps, options):
    check_label_content([dataset_of(tmp_path, maps, **{'classes': 2, **options})])


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
