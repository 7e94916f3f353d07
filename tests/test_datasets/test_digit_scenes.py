"""The built-in data: the same every time, its parts separate, its annotations true to the images."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

from pelk_mm.datasets import digit_scenes as module
from pelk_mm.datasets import make_digit_scenes
from pelk_mm.datasets.digit_rendering import load_handwritten_digits
from pelk_mm.datasets.digit_scenes import encode_rle, split_digits


def content_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


def annotations_of(root, split):
    return json.loads((root / f'scenes/annotations/instances_{split}.json').read_text())


def scenes_of(root, split):
    """Return image, label map and annotations of each scene, masks decoded by COCO's own code."""
    coco = annotations_of(root, split)
    for entry in coco['images']:
        image = np.asarray(Image.open(root / 'scenes/images' / split / entry['file_name']))
        labels = Image.open(root / 'scenes/annotations' / split / entry['file_name'])
        assert labels.mode == 'L'
        instances = [annotation for annotation in coco['annotations'] if annotation['image_id'] == entry['id']]
        masks = []
        for instance in instances:
            rle = coco_mask.frPyObjects(instance['segmentation'], entry['height'], entry['width'])
            masks.append(coco_mask.decode(rle).astype(bool))
        yield image, np.asarray(labels), instances, masks


def test_same_seed_same_bytes(digit_scenes, tmp_path, small):
    make_digit_scenes(tmp_path / 'again', **small)
    assert content_of(tmp_path / 'again') == content_of(digit_scenes)


def test_another_seed_gives_other_images(digit_scenes, tmp_path, small):
    make_digit_scenes(tmp_path / 'other', seed=1, **small)
    ours, other = content_of(digit_scenes), content_of(tmp_path / 'other')
    same = [name for name in set(ours) & set(other) if ours[name] == other[name]]
    assert same == []


def test_a_larger_set_begins_with_the_smaller(digit_scenes, tmp_path, small):
    make_digit_scenes(tmp_path / 'larger', **{**small, 'num_cls_train': 60, 'num_scenes_val': 8})
    small, larger = content_of(digit_scenes), content_of(tmp_path / 'larger')
    images = [name for name in small if name.endswith('.png')]
    assert len(images) == 40 + 20 + 2 * (12 + 6)
    assert {name: larger[name] for name in images} == {name: small[name] for name in images}


def test_layout_and_counts(digit_scenes):
    meta = json.loads((digit_scenes / 'meta.json').read_text())
    assert meta['counts'] == {
        'cls/train': 40, 'scenes/images/train': 12, 'scenes/annotations/train': 12,
        'scenes/annotations/instances_train.json': 1,
        'cls/val': 20, 'scenes/images/val': 6, 'scenes/annotations/val': 6,
        'scenes/annotations/instances_val.json': 1,
    }  # yapf: disable
    for digit in range(10):
        assert len(list((digit_scenes / f'cls/train/{digit}').iterdir())) == 4
        assert len(list((digit_scenes / f'cls/val/{digit}').iterdir())) == 2
    image = Image.open(next((digit_scenes / 'cls/train/7').iterdir()))
    assert (image.mode, image.size) == ('RGB', (64, 64))
    image = Image.open(digit_scenes / 'scenes/images/val/0000.png')
    assert (image.mode, image.size) == ('RGB', (128, 128))


def test_split_shares_out_every_digit_once():
    _, labels = load_handwritten_digits()
    parts = split_digits(seed=0, val_fraction=0.2)
    assert sorted(parts['train'] + parts['val']) == list(range(1797))
    # 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 of each class, a fifth of each rounded.
    assert np.bincount(labels[parts['val']]).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert labels[parts['train'][:20]].tolist() == [*range(10), *range(10)]
    assert split_digits(seed=1, val_fraction=0.2) != parts


def test_no_two_handwritten_digits_are_the_same_image():
    images, _ = load_handwritten_digits()
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797


def test_train_and_val_use_their_own_digits_in_all_tasks(digit_scenes):
    _, labels = load_handwritten_digits()
    parts = split_digits(seed=0, val_fraction=0.2)
    for split in ('train', 'val'):
        files = list((digit_scenes / 'cls' / split).rglob('*.png'))
        assert {int(file.name[:4]) for file in files} <= set(parts[split])
        assert all(labels[int(file.name[:4])] == int(file.parent.name) for file in files)
        instances = annotations_of(digit_scenes, split)['annotations']
        assert {instance['digit_index'] for instance in instances} <= set(parts[split])
        assert all(labels[instance['digit_index']] + 1 == instance['category_id'] for instance in instances)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_and_areas_fit_the_masks_whose_union_are_the_label_maps(digit_scenes, split):
    for _, labels, instances, masks in scenes_of(digit_scenes, split):
        assert 1 <= len(instances) <= 7
        assert np.sum(masks, axis=0).max() == 1
        expected = np.ones((128, 128))
        for instance, mask in zip(instances, masks):
            # Category ids count the digits from 1, label values from 2: 1 is the background.
            expected[mask] = instance['category_id'] + 1
            rows, cols = np.nonzero(mask)
            assert instance['area'] == len(rows) > 0
            x, y, width, height = instance['bbox']
            assert (x, x + width - 1, y, y + height - 1) == (cols.min(), cols.max(), rows.min(), rows.max())
            assert instance['iscrowd'] == 0
        assert np.array_equal(labels, expected)


def test_masks_show_what_the_image_shows(digit_scenes):
    """Inside a mask the image has one colour: where digits overlap, the mask belongs to the upper one."""
    uniform, touching = [], 0
    for image, _, _, masks in scenes_of(digit_scenes, 'train'):
        for mask in masks:
            inner = ndimage.binary_erosion(mask, iterations=2)
            if inner.any():
                pixels = image[inner].astype(int)
                uniform.append((np.abs(pixels - np.median(pixels, axis=0)).max(axis=1) <= 8).mean())
        grown = np.sum([ndimage.binary_dilation(mask) for mask in masks], axis=0)
        touching += grown.max() > 1
    assert min(uniform) > 0.8
    assert np.mean(uniform) > 0.97
    assert touching >= 6


def test_annotation_ids_are_unique_and_categories_complete(digit_scenes):
    coco = annotations_of(digit_scenes, 'train')
    ids = [annotation['id'] for annotation in coco['annotations']]
    assert ids == list(range(1, len(ids) + 1))
    assert [(category['id'], category['name']) for category in coco['categories']] == [(i + 1, str(i))
                                                                                       for i in range(10)]


@pytest.mark.parametrize(('mask', 'counts'), [
    ([[0, 1], [1, 1]], [1, 3]),
    ([[1, 0, 0], [1, 0, 1]], [0, 2, 3, 1]),
    ([[0, 0], [0, 0]], [4]),
    ([[1, 1]], [0, 2]),
])
def test_encode_rle_runs_down_the_columns(mask, counts):
    mask = np.array(mask, dtype=bool)
    assert encode_rle(mask) == dict(size=list(mask.shape), counts=counts)


def test_a_place_hides_no_digit_too_far():
    owner = np.full((20, 20), -1)
    owner[5:15, 5:15] = 0
    rng = np.random.RandomState(0)
    everything = np.ones((20, 20), dtype=bool)
    assert module._find_place(rng, everything, owner, [100]) is None
    corner = module._find_place(rng, np.ones((6, 6), dtype=bool), owner, [100])
    top, left = corner
    assert (owner[top:top + 6, left:left + 6] == 0).sum() <= 30
    # 20 of 100 pixels were hidden before: at most 10 more.
    owner[5:7, 5:15] = -1
    for _ in range(20):
        top, left = module._find_place(rng, np.ones((6, 6), dtype=bool), owner, [100])
        assert (owner[top:top + 6, left:left + 6] == 0).sum() <= 10


def test_sizes_numbers_and_shares_follow_the_arguments(tmp_path):
    make_digit_scenes(
        tmp_path / 'a',
        num_cls_train=10,
        num_cls_val=10,
        num_scenes_train=4,
        num_scenes_val=1,
        cls_size=48,
        scene_size=96,
        digits_per_scene=(2, 2),
        val_fraction=0.5)
    assert Image.open(next((tmp_path / 'a/cls/val/0').iterdir())).size == (48, 48)
    assert Image.open(tmp_path / 'a/scenes/images/train/0003.png').size == (96, 96)
    numbers = np.bincount([instance['image_id'] for instance in annotations_of(tmp_path / 'a', 'train')['annotations']])
    assert numbers.tolist() == [2, 2, 2, 2]
    digits = json.loads((tmp_path / 'a/meta.json').read_text())['digits']
    assert abs(len(digits['train']) - len(digits['val'])) <= 10


def test_a_complete_set_is_used_as_it_is(digit_scenes, small):
    before = {path: path.stat().st_mtime_ns for path in digit_scenes.rglob('*')}
    meta = make_digit_scenes(str(digit_scenes), **small)
    assert meta == json.loads((digit_scenes / 'meta.json').read_text())
    assert {path: path.stat().st_mtime_ns for path in digit_scenes.rglob('*')} == before


def test_other_parameters_never_overwrite(digit_scenes, small):
    before = content_of(digit_scenes)
    with pytest.raises(FileExistsError, match='seed 0 instead of 3, num_cls_val 20 instead of 30'):
        make_digit_scenes(digit_scenes, seed=3, **{**small, 'num_cls_val': 30})
    assert content_of(digit_scenes) == before


def test_foreign_and_incomplete_folders_stay_unchanged(tmp_path, small):
    foreign = tmp_path / 'foreign'
    foreign.mkdir()
    (foreign / 'thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='no digit_scenes data set'):
        make_digit_scenes(foreign, **small)
    assert content_of(foreign) == {'thesis.tex': b'precious'}

    broken = tmp_path / 'broken'
    make_digit_scenes(broken, **small)
    (broken / 'scenes/images/val/0004.png').unlink()
    with pytest.raises(FileExistsError, match='5 of 6 in scenes/images/val'):
        make_digit_scenes(broken, **small)
    assert not (broken / 'scenes/images/val/0004.png').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['broken', 'foreign']


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch, small):

    def interrupt(*args):
        raise KeyboardInterrupt

    empty = tmp_path / 'digit_scenes'
    empty.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, '_make_scenes', interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_digit_scenes(empty, **small)
    assert [path.name for path in tmp_path.iterdir()] == ['digit_scenes']
    assert list(empty.iterdir()) == []
    make_digit_scenes(empty, **small)
    assert (empty / 'meta.json').is_file()
    assert empty.stat().st_mode == (empty / 'cls').stat().st_mode


@pytest.mark.parametrize(('name', 'value'), [
    ('seed', -1),
    ('seed', 0.5),
    ('num_cls_train', 9),
    ('num_cls_val', '20'),
    ('num_scenes_train', 0),
    ('num_scenes_val', 0),
    ('cls_size', 16),
    ('scene_size', 32),
    ('digits_per_scene', (0, 3)),
    ('digits_per_scene', (5, 4)),
    ('digits_per_scene', 5),
    ('val_fraction', 0.0),
    ('val_fraction', 1.0),
    ('val_fraction', '0.2'),
])
def test_wrong_arguments_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f'{name} must be .*got') as error:
        make_digit_scenes(tmp_path / 'a', **{name: value})
    assert repr(value) in str(error.value)
    assert list(tmp_path.iterdir()) == []
