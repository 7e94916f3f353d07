"""The check of the four data sets: complete ones pass, and every gap is named with its remedy."""

import json
import shutil

import pytest
from PIL import Image

from pelk_mm.datasets.check import CHECKS, check_ade20k, check_coco, check_digits, check_imagenet, check_images

NUMBERS = dict(num_train=4, num_val=2, num_classes=2)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x')


@pytest.fixture
def imagenet(tmp_path):
    """4 training and 2 validation images in 2 class folders."""
    for wnid in ('n00000001', 'n00000002'):
        for number in range(2):
            touch(tmp_path / f'imagenet/train/{wnid}/{wnid}_{number}.JPEG')
        touch(tmp_path / f'imagenet/val/{wnid}/{wnid}.JPEG')
    return tmp_path / 'imagenet'


@pytest.fixture
def ade20k(tmp_path):
    root = tmp_path / 'ade/ADEChallengeData2016'
    for part, number in (('training', 4), ('validation', 2)):
        for index in range(number):
            touch(root / f'images/{part}/{index}.jpg')
            touch(root / f'annotations/{part}/{index}.png')
    return root


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / 'coco'
    (root / 'annotations').mkdir(parents=True)
    for split, number in (('train2017', 4), ('val2017', 2)):
        for index in range(number):
            touch(root / f'{split}/{index}.jpg')
        content = dict(images=[dict(file_name=f'{index}.jpg') for index in range(number)], categories=[{}, {}])
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
    return root


def problems(items):
    return {item.path.name: item.problem for item in items if item.problem}


def test_complete_sets_pass(imagenet, ade20k, coco, digit_scenes):
    assert problems(check_imagenet(imagenet, **NUMBERS)) == {}
    assert [item.found for item in check_imagenet(imagenet, **NUMBERS)] == [
        '4 images in 2 class folders', '2 images in 2 class folders'
    ]
    assert problems(check_ade20k(ade20k, num_train=4, num_val=2)) == {}
    assert problems(check_coco(coco, **NUMBERS)) == {}
    assert problems(check_digits(digit_scenes)) == {}
    assert len(check_digits(digit_scenes)) == 9


@pytest.mark.parametrize(('name', 'expected'), [
    ('imagenet', [('train', 'ILSVRC2012_img_train.tar'), ('val', 'ILSVRC2012_devkit_t12.tar.gz')]),
    ('ade20k', [(f'{kind}/{part}', 'ADEChallengeData2016.zip') for part in ('training', 'validation')
                for kind in ('images', 'annotations')]),
    ('coco', [('train2017', 'train2017.zip'), ('annotations/instances_train2017.json', 'annotations_trainval2017.zip'),
              ('val2017', 'val2017.zip'), ('annotations/instances_val2017.json', 'annotations_trainval2017.zip')]),
    ('digits', [('meta.json', 'digit_scenes.py --out')]),
])  # yapf: disable
def test_an_absent_set_is_missing_in_every_part(tmp_path, name, expected):
    root = tmp_path / 'nowhere'
    items = CHECKS[name][0](root)
    assert [(item.path, item.problem, item.found) for item in items] == [
        (root / path, 'missing', 'nothing') for path, _ in expected
    ]
    for item, (_, source) in zip(items, expected):
        assert source in item.advice
        assert str(root.parent if name == 'ade20k' else root) in item.advice


def test_published_counts(imagenet, ade20k, coco):
    assert problems(check_imagenet(imagenet)) == {'train': 'expected 1281167 in 1000', 'val': 'expected 50000 in 1000'}
    assert [item.problem for item in check_ade20k(ade20k)] == ['expected 20210'] * 2 + ['expected 2000'] * 2
    assert [item.problem for item in check_coco(coco)] == [
        'expected 118287', 'expected 118287 and 80', 'expected 5000', 'expected 5000 and 80'
    ]


def test_imagenet_with_class_folders(imagenet):
    shutil.move(imagenet / 'val/n00000002', imagenet / 'val/cat')
    (imagenet / 'train/n00000001/n00000001_0.JPEG').unlink()
    (imagenet / 'train/n00000001/n00000001_0.JPEG.part').touch()
    found = problems(check_imagenet(imagenet, **NUMBERS))
    assert found['train'] == 'expected 4 in 2'
    assert found['val'].startswith('cat is not named like a class')
    shutil.rmtree(imagenet / 'val')
    touch(imagenet / 'val/ILSVRC2012_val_00000001.JPEG')
    assert problems(check_imagenet(imagenet, **NUMBERS))['val'].startswith('has neither class folders nor')


@pytest.mark.parametrize(('lines', 'problem'), [
    (['n00000001/n00000001.JPEG 0', 'n00000002/n00000002.JPEG 1'], None),
    (['n00000001/n00000001.JPEG 0'], 'expected 2 with labels 0 .. 1'),
    (['n00000001/n00000001.JPEG 1', 'n00000002/n00000002.JPEG 2'], 'expected 2 with labels 0 .. 1'),
    (['n00000001.JPEG 0', 'n00000002/n00000002.JPEG 1'], '1 of them are missing'),
    (['n00000001/n00000001.JPEG'], "instead of 'NAME LABEL'"),
])
def test_imagenet_with_annotation_file(imagenet, lines, problem):
    (imagenet / 'meta').mkdir()
    (imagenet / 'meta/val.txt').write_text('\n'.join(lines) + '\n')
    found = problems(check_imagenet(imagenet, **NUMBERS))
    assert list(found) == ([] if problem is None else ['val.txt'])
    assert problem is None or problem in found['val.txt']


def test_ade20k_names_images_without_label_map(ade20k):
    (ade20k / 'annotations/validation/1.png').rename(ade20k / 'annotations/validation/7.png')
    assert problems(check_ade20k(
        ade20k, num_train=4, num_val=2)) == {'validation': '1 images have no label map, the first is 1'}


def test_coco_compares_annotations_with_images(coco):
    (coco / 'val2017/1.jpg').unlink()
    (coco / 'annotations/instances_train2017.json').write_text('{"images": [')
    found = problems(check_coco(coco, **NUMBERS))
    assert found['val2017'] == 'expected 2'
    assert found['instances_val2017.json'] == '1 of its images are missing from their folder, the first is 1.jpg'
    assert found['instances_train2017.json'].startswith('damaged')


def test_digits_are_compared_with_their_own_record(digit_scenes, tmp_path):
    copy = tmp_path / 'digit_scenes'
    shutil.copytree(digit_scenes, copy)
    next((copy / 'cls/train/3').iterdir()).unlink()
    meta = json.loads((copy / 'meta.json').read_text())
    (copy / 'meta.json').write_text(json.dumps({**meta, 'version': 0}))
    items = check_digits(copy)
    assert problems(items) == {'meta.json': 'expected version 1', 'train': 'expected 40'}
    assert [item.found for item in items if item.problem] == ['version 0', '39 files']


@pytest.mark.parametrize('complete', [True, False])
def test_the_tool_prints_and_exits(digit_scenes, tmp_path, run_tool, complete):
    folder = digit_scenes if complete else tmp_path
    code, output = run_tool('dataset_converters/check_dataset.py', 'digits', '--root', folder)
    if complete:
        assert code == 0
        assert output.count('[ok]') == 9
        assert output.endswith('digits: complete.\n')
    else:
        assert code == 1
        assert f'[WRONG] {tmp_path / "meta.json"}: nothing; missing' in output
        assert f'digit_scenes.py --out {tmp_path}' in output
        assert output.endswith('digits: 1 of 1 parts are missing or wrong.\n')


def test_the_defaults_are_the_folders_of_the_configs(root):
    assert {name: folder for name, (_, folder) in CHECKS.items()} == {
        'imagenet': 'data/imagenet', 'ade20k': 'data/ade/ADEChallengeData2016', 'coco': 'data/coco',
        'digits': 'data/digit_scenes', 'images': 'data',
    }  # yapf: disable


def test_the_converters_pass_their_arguments_on(tmp_path, run_tool):
    code, output = run_tool(
        'dataset_converters/digit_scenes.py', '--out', tmp_path / 'digits', '--seed', 3, '--num-cls-train', 12,
        '--num-cls-val', 11, '--num-scenes-train', 2, '--num-scenes-val', 1, '--cls-size', 48, '--scene-size', 80,
        '--digits-per-scene', 1, 2, '--val-fraction', 0.3)  # yapf: disable
    assert code == 0, output
    assert json.loads((tmp_path / 'digits/meta.json').read_text())['parameters'] == dict(
        seed=3, num_cls_train=12, num_cls_val=11, num_scenes_train=2, num_scenes_val=1, cls_size=48, scene_size=80,
        digits_per_scene=[1, 2], val_fraction=0.3)  # yapf: disable
    for name, missing in (('imagenet.py', 'ILSVRC2012_img_train'), ('coco.py', 'train2017'), ('ade20k.py', 'csail')):
        with pytest.raises(FileNotFoundError, match=missing):
            run_tool(f'dataset_converters/{name}', tmp_path / 'nowhere', '--out', tmp_path / 'out')


def test_the_tool_makes_the_defaults_of_the_function(run_tool, monkeypatch):
    called = {}
    monkeypatch.setattr('pelk_mm.datasets.make_digit_scenes', lambda folder, **kwargs: called.update(kwargs))
    run_tool('dataset_converters/digit_scenes.py')
    import inspect

    from pelk_mm.datasets.digit_scenes import make_digit_scenes
    defaults = inspect.signature(make_digit_scenes).parameters
    assert called == {name: defaults[name].default for name in called}
    assert {'root', *called} == set(defaults)


def test_every_image_of_a_folder_is_opened(tmp_path):
    for name in ('a/whole.jpg', 'a/cut.jpg', 'labels/cut.PNG', 'labels/whole.png'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 50).save(path)
        if 'cut' in name:
            path.write_bytes(path.read_bytes()[:-300])
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'notes.txt').touch()
    whole, *damaged = check_images(tmp_path)
    assert (whole.path, whole.problem, whole.found) == (tmp_path, '', '2 of 5 images are undamaged')
    assert [str(item.path.relative_to(tmp_path)) for item in damaged] == ['a/cut.jpg', 'empty.jpg', 'labels/cut.PNG']
    assert 'damaged (image file is truncated' in damaged[0].problem
    assert damaged[1].found == '0 bytes'
    assert [item.problem for item in check_images(tmp_path / 'nowhere')] == ['missing']
