"""Compare the files of a data set with those it should have, and say where to get missing ones."""

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from ..image_decoding import decoding_error
from ..image_names import list_image_files
from .digit_scenes import VERSION, count_files

# The suffixes that mmpretrain's datasets accept in class folders, which are not those of all images.
MMPRETRAIN_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')
CONVERTERS = 'python tools/dataset_converters'


class CheckItem(NamedTuple):
    """A required part of a data set.

    Attributes:
        path (Path): File or folder.
        problem (str): The problem with it, empty if there is no problem.
        found (str): What was found there.
        advice (str): Where to get it and where to put it.
    """
    path: Path
    problem: str
    found: str
    advice: str


def check_imagenet(root: Path,
                   num_train: int = 1281167,
                   num_val: int = 50000,
                   num_classes: int = 1000) -> list[CheckItem]:
    """Check ImageNet-1K as mmpretrain's ``ImageNet`` reads it.

    Labels come from ``meta/{train,val}.txt`` where these exist, otherwise from class folders.

    Args:
        root (Path): Usually ``data/imagenet``.
        num_train (int): Expected training images. Defaults to 1281167.
        num_val (int): Expected validation images. Defaults to 50000.
        num_classes (int): Expected classes. Defaults to 1000.

    Returns:
        list[CheckItem]: One item for each part.
    """
    archives = {'train': 'ILSVRC2012_img_train.tar', 'val': 'ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz'}
    items = []
    for split, number in (('train', num_train), ('val', num_val)):
        advice = (f'get {archives[split]} from https://image-net.org/download-images.php (with an account), then run '
                  f'{CONVERTERS}/imagenet.py FOLDER_OF_ARCHIVES --out {root}')
        if (root / 'meta' / f'{split}.txt').is_file():
            items.append(_check_listed_images(root, split, number, num_classes, advice))
        else:
            items.append(_check_class_folders(root / split, number, num_classes, advice))
    return items


def check_ade20k(root: Path, num_train: int = 20210, num_val: int = 2000) -> list[CheckItem]:
    """Check ADE20K as mmseg's ``ADE20KDataset`` reads it.

    Args:
        root (Path): Usually ``data/ade/ADEChallengeData2016``.
        num_train (int): Expected training images. Defaults to 20210.
        num_val (int): Expected validation images. Defaults to 2000.

    Returns:
        list[CheckItem]: One item for each folder.
    """
    advice = ('get http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip, then run '
              f'{CONVERTERS}/ade20k.py ADEChallengeData2016.zip --out {root.parent}')
    items = []
    for split, number in (('training', num_train), ('validation', num_val)):
        images, labels = root / 'images' / split, root / 'annotations' / split
        image_names, label_names = _list_stems(images, '.jpg'), _list_stems(labels, '.png')
        items.append(_check_number(images, len(image_names), number, 'images', advice))
        item = _check_number(labels, len(label_names), number, 'label maps', advice)
        unlabelled = sorted(image_names - label_names)
        if unlabelled and not item.problem:
            item = item._replace(problem=f'{len(unlabelled)} images have no label map, the first is {unlabelled[0]}')
        items.append(item)
    return items


def check_coco(root: Path, num_train: int = 118287, num_val: int = 5000, num_classes: int = 80) -> list[CheckItem]:
    """Check COCO 2017 as mmdet's ``CocoDataset`` reads it.

    Args:
        root (Path): Usually ``data/coco``.
        num_train (int): Expected training images. Defaults to 118287.
        num_val (int): Expected validation images. Defaults to 5000.
        num_classes (int): Expected categories. Defaults to 80.

    Returns:
        list[CheckItem]: One item for each folder and annotation file.
    """
    items = []
    for split, number in (('train2017', num_train), ('val2017', num_val)):
        run = f'then run {CONVERTERS}/coco.py FOLDER_OF_ARCHIVES --out {root}'
        images = _list_stems(root / split, '.jpg')
        items.append(
            _check_number(root / split, len(images), number, 'images',
                          f'get http://images.cocodataset.org/zips/{split}.zip, {run}'))
        items.append(
            _check_instances(
                root / 'annotations' / f'instances_{split}.json', images, number, num_classes,
                f'get http://images.cocodataset.org/annotations/annotations_trainval2017.zip, {run}'))
    return items


def check_digits(root: Path) -> list[CheckItem]:
    """Check the built-in data against its own ``meta.json``.

    Args:
        root (Path): Usually ``data/digit_scenes``.

    Returns:
        list[CheckItem]: One item for each folder and annotation file.
    """
    make = f'run {CONVERTERS}/digit_scenes.py --out {root}'
    meta_file = root / 'meta.json'
    if not meta_file.is_file():
        return [CheckItem(meta_file, 'missing', 'nothing', make)]
    meta = json.loads(meta_file.read_text())
    remake = f'move {root} away and {make}'
    outdated = '' if meta['version'] == VERSION else f'expected version {VERSION}'
    items = [CheckItem(meta_file, outdated, f"version {meta['version']}", remake)]
    counts = count_files(root)
    items += [
        _check_number(root / name, counts[name], number, 'files', remake) for name, number in meta['counts'].items()
    ]
    return items


def check_images(root: Path) -> list[CheckItem]:
    """Decode every image in and under a folder to its end, on all cores.

    Args:
        root (Path): Any folder of images, label maps included.

    Returns:
        list[CheckItem]: The folder, and every file that is damaged.
    """
    files = list_image_files(root, subfolders=True)
    if not files:
        return [CheckItem(root, 'missing' if not root.is_dir() else 'has no images', 'nothing', 'give --root FOLDER')]
    with ProcessPoolExecutor(mp_context=get_context('spawn')) as pool:
        found = track(pool.map(decoding_error, files, chunksize=16), 'Images', len(files))
        items = [
            CheckItem(path, f'damaged ({error})', f'{path.stat().st_size} bytes',
                      'get it again, or take it out of the data set') for path, error in zip(files, found) if error
        ]
    return [CheckItem(root, '', f'{len(files) - len(items)} of {len(files)} images are undamaged', ''), *items]


# From the name on the command line to the check and the folder the configs expect.
CHECKS: dict[str, tuple[Callable[[Path], list[CheckItem]], str]] = {
    'imagenet': (check_imagenet, 'data/imagenet'),
    'ade20k': (check_ade20k, 'data/ade/ADEChallengeData2016'),
    'coco': (check_coco, 'data/coco'),
    'digits': (check_digits, 'data/digit_scenes'),
    'images': (check_images, 'data'),
}


def _check_number(path: Path, number: int, expected: int, what: str, advice: str) -> CheckItem:
    """Compare a count; a path that does not exist is called missing."""
    if not path.exists():
        return CheckItem(path, 'missing', 'nothing', advice)
    problem = '' if number == expected else f'expected {expected}'
    return CheckItem(path, problem, f'{number} {what}', advice)


def _list_stems(folder: Path, suffix: str) -> set[str]:
    """Return the names without suffix of the files with this suffix in a folder itself, none where it is missing."""
    if not folder.is_dir():
        return set()
    return {entry.name[:-len(suffix)] for entry in os.scandir(folder) if entry.name.endswith(suffix)}


def _check_class_folders(folder: Path, number: int, num_classes: int, advice: str) -> CheckItem:
    """Check a split whose labels are the names of its folders."""
    if not folder.is_dir():
        return CheckItem(folder, 'missing', 'nothing', advice)
    with os.scandir(folder) as entries:
        classes = sorted(entry.path for entry in entries if entry.is_dir())
    counts = [
        sum(entry.name.lower().endswith(MMPRETRAIN_SUFFIXES) for entry in os.scandir(path))
        for path in track(classes, description=str(folder))
    ]
    found = f'{sum(counts)} images in {len(classes)} class folders'
    unknown = [os.path.basename(path) for path in classes if not re.fullmatch(r'n\d{8}', os.path.basename(path))]
    problem = ''
    if not classes:
        problem = 'has neither class folders nor an annotation file in meta/'
    elif unknown:
        problem = f'{unknown[0]} is not named like a class (n and 8 digits)'
    elif (sum(counts), len(classes)) != (number, num_classes):
        problem = f'expected {number} in {num_classes}'
    return CheckItem(folder, problem, found, advice)


def _check_listed_images(root: Path, split: str, number: int, num_classes: int, advice: str) -> CheckItem:
    """Check a split whose images and labels are the lines of ``meta/<split>.txt``."""
    path = root / 'meta' / f'{split}.txt'
    samples = [line.rsplit(' ', 1) for line in path.read_text().splitlines()]
    malformed = [sample for sample in samples if len(sample) != 2 or not sample[1].isdigit()]
    if malformed:
        return CheckItem(path, f"has the line {' '.join(malformed[0])!r} instead of 'NAME LABEL'",
                         f'{len(samples)} lines', advice)
    labels = {int(label) for _, label in samples}
    missing = [
        name for name, _ in track(samples, description=str(path)) if not os.path.exists(os.path.join(root, split, name))
    ]
    found = f'{len(samples)} images of {len(labels)} classes'
    problem = ''
    if missing:
        problem = f'{len(missing)} of them are missing from {root / split}, the first is {missing[0]}'
    elif (len(samples), labels) != (number, set(range(num_classes))):
        problem = f'expected {number} with labels 0 .. {num_classes - 1}'
    return CheckItem(path, problem, found, advice)


def _check_instances(path: Path, images: set[str], number: int, num_classes: int, advice: str) -> CheckItem:
    """Check a COCO annotation file against the images of its split."""
    if not path.is_file():
        return CheckItem(path, 'missing', 'nothing', advice)
    try:
        annotations = json.loads(path.read_text())
        named = {Path(image['file_name']).stem for image in annotations['images']}
        len(annotations['categories'])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        return CheckItem(path, f'damaged ({type(error).__name__}: {error})', f'{path.stat().st_size} bytes', advice)
    found = f"{len(named)} images, {len(annotations['categories'])} categories"
    missing = sorted(named - images)
    problem = ''
    if (len(named), len(annotations['categories'])) != (number, num_classes):
        problem = f'expected {number} and {num_classes}'
    elif missing:
        problem = f'{len(missing)} of its images are missing from their folder, the first is {missing[0]}.jpg'
    return CheckItem(path, problem, found, advice)
