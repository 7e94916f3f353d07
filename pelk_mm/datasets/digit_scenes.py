"""``digit_scenes``: a small data set for all three tasks, made from the digits and photographs of scikit-learn."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import MMLogger
from PIL import Image
from rich.progress import track

from .digit_rendering import (
    load_handwritten_digits,
    load_photographs,
    paste,
    random_background,
    random_color,
    random_digit,
    to_image,
)

# Part of meta.json: raise it when the same parameters give other images.
VERSION = 1
DIGIT_CLASSES = tuple('0123456789')
# Label maps follow ADE20K: 0 is "other" and ignored (it does not occur here), class i of this list has the value i + 1.
SEGMENTATION_CLASSES = ('background', ) + DIGIT_CLASSES
SPLITS = ('train', 'val')

# Later digits may cover a digit only if this share of it stays visible, so that all can be read.
MIN_VISIBLE = 0.7
PLACEMENT_TRIALS = 20
# Degrees to either side of upright.
MAX_ANGLE = 20.0


def make_digit_scenes(root: str | os.PathLike,
                      seed: int = 0,
                      num_cls_train: int = 5000,
                      num_cls_val: int = 700,
                      num_scenes_train: int = 500,
                      num_scenes_val: int = 100,
                      cls_size: int = 64,
                      scene_size: int = 128,
                      digits_per_scene: tuple[int, int] = (3, 7),
                      val_fraction: float = 0.2) -> dict[str, Any]:
    """Make the data set for classification, semantic and instance segmentation.

    The same seed and parameters give the same files. A handwritten digit and a piece of a photograph belong either to
    the training or to the validation part, of all three tasks alike. ::

        root
        ├── meta.json                               parameters, counts, indices of the digits of each part
        ├── cls/{train,val}/<digit>/NNNN_R.png      rendering R of digit NNNN of ``sklearn.datasets.load_digits``
        └── scenes
            ├── images/{train,val}/NNNN.png         RGB
            ├── annotations/{train,val}/NNNN.png    label maps: 0 other (unused), 1 background, 2 .. 11 the digits
            └── annotations/instances_{train,val}.json   COCO instances: the visible part, as uncompressed RLE

    The files are made in a folder beside ``root``, which is renamed when it is complete.

    Args:
        root (str | os.PathLike): Folder to make. If it already holds this data set, complete and made with the same
            arguments, it is not changed.
        seed (int): Seed of everything random. Defaults to 0.
        num_cls_train (int): Images to train classification, evenly over the classes. Defaults to 5000.
        num_cls_val (int): Images to validate classification. Defaults to 700.
        num_scenes_train (int): Scenes to train segmentation and detection. Defaults to 500.
        num_scenes_val (int): Scenes to validate segmentation and detection. Defaults to 100.
        cls_size (int): Side of the classification images in pixels. Defaults to 64.
        scene_size (int): Side of the scenes in pixels. Defaults to 128.
        digits_per_scene (tuple[int, int]): Fewest and most digits put into a scene. Defaults to (3, 7).
        val_fraction (float): Share of the handwritten digits kept for validation. Defaults to 0.2.

    Returns:
        dict: The content of ``meta.json``.

    Raises:
        ValueError: If an argument is out of range.
        FileExistsError: If ``root`` holds something else. Nothing is changed then.
    """
    parameters = dict(locals())
    del parameters['root']
    _check_parameters(parameters)
    # As JSON gives it back.
    parameters['digits_per_scene'] = list(digits_per_scene)
    root, logger = Path(root).resolve(), MMLogger.get_current_instance()
    meta = _find_existing(root, parameters)
    if meta is None:
        meta = _make_beside(root, parameters)
        logger.info(f'Made {root}: {num_cls_train} + {num_cls_val} images for classification, '
                    f'{num_scenes_train} + {num_scenes_val} scenes.')
    else:
        logger.info(f'{root} already holds this data set (seed {seed}): it is used as it is.')
    return meta


def split_digits(seed: int, val_fraction: float) -> dict[str, list[int]]:
    """Share the handwritten digits out between training and validation, ``val_fraction`` of every class to the latter.

    Returns:
        dict: 'train' and 'val': indices into scikit-learn's 1,797 digits. The classes take turns 0, 1, .. 9, 0, ..
        as long as each has some left, so that any first part of the list is balanced.
    """
    _, labels = load_handwritten_digits()
    rng = np.random.RandomState(seed)
    parts = {split: [] for split in SPLITS}
    for label in range(len(DIGIT_CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label)).tolist()
        num_val = round(len(members) * val_fraction)
        parts['val'].append(members[:num_val])
        parts['train'].append(members[num_val:])
    return {
        split: [members[turn] for turn in range(max(map(len, classes))) for members in classes if turn < len(members)]
        for split, classes in parts.items()
    }


def count_files(root: Path) -> dict[str, int]:
    """Count the files of a data set, by folder or annotation file relative to ``root``, as ``meta.json`` records it."""
    patterns = {}
    for split in SPLITS:
        patterns[f'cls/{split}'] = '/*/*.png'
        patterns[f'scenes/images/{split}'] = patterns[f'scenes/annotations/{split}'] = '/*.png'
        patterns[f'scenes/annotations/instances_{split}.json'] = ''
    return {name: len(list(root.glob(name + pattern))) for name, pattern in patterns.items()}


def encode_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a mask (H, W), bool, as COCO's uncompressed run lengths.

    Returns:
        dict: 'size' [H, W] and 'counts', the lengths of the runs down the columns, the first one of zeros.
    """
    pixels = np.concatenate([[False], mask.ravel(order='F')])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return dict(size=list(mask.shape), counts=counts.tolist())


def _check_parameters(parameters: dict[str, Any]) -> None:
    limits = dict(
        seed=(0, 2**31 - 1),
        num_cls_train=(len(DIGIT_CLASSES), 10**6),
        num_cls_val=(len(DIGIT_CLASSES), 10**6),
        num_scenes_train=(1, 10**6),
        num_scenes_val=(1, 10**6),
        cls_size=(48, 4096),
        scene_size=(64, 4096))
    for name, (low, high) in limits.items():
        value = parameters[name]
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f'{name} must be an integer from {low} to {high}, but got {value!r}.')
    numbers = parameters['digits_per_scene']
    if (not isinstance(numbers, (list, tuple)) or [type(number) for number in numbers] != [int, int]
            or not 1 <= numbers[0] <= numbers[1]):
        raise ValueError('digits_per_scene must be two integers, the fewest (at least 1) and the most, '
                         f'but got {numbers!r}.')
    fraction = parameters['val_fraction']
    if not isinstance(fraction, float) or not 0.05 <= fraction <= 0.95:
        raise ValueError(f'val_fraction must be a fraction from 0.05 to 0.95, but got {fraction!r}.')


def _find_existing(root: Path, parameters: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metadata of a complete data set with these parameters, None if there is nothing yet.

    Raises:
        FileExistsError: If there is something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    advice = 'Nothing was changed. Choose another folder, or move this one away.'
    try:
        meta = json.loads((root / 'meta.json').read_text())
    except (OSError, ValueError) as error:
        raise FileExistsError(f'{root} exists and is no digit_scenes data set: it has no meta.json that can be read. '
                              f'{advice}') from error
    wanted = dict(version=VERSION, **parameters)
    found = dict(version=meta.get('version'), **meta.get('parameters', {}))
    if found != wanted:
        differing = ', '.join(f'{name} {found.get(name)!r} instead of {value!r}' for name, value in wanted.items()
                              if found.get(name) != value)
        raise FileExistsError(f'{root} holds digit_scenes made with other parameters: {differing}. {advice}')
    counts = count_files(root)
    if counts != meta['counts']:
        differing = ', '.join(f'{counts[name]} of {number} in {name}' for name, number in meta['counts'].items()
                              if counts[name] != number)
        raise FileExistsError(f'{root} holds digit_scenes, but files are missing or were added: {differing}. {advice}')
    return meta


def _make_beside(root: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Write the data set into a folder beside ``root``, which takes that name when it is complete."""
    root.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        meta = _make(workspace, parameters)
        # mkdtemp lets only the owner in; the result gets what a plain mkdir would have given.
        workspace.chmod((workspace / 'scenes').stat().st_mode)
        try:
            workspace.rename(root)
        except OSError:
            # Another process may have finished the same data set meanwhile.
            if _find_existing(root, parameters) is None:
                raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return meta


def _make(root: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    parts = split_digits(parameters['seed'], parameters['val_fraction'])
    photos = load_photographs()
    for split in SPLITS:
        _make_cls(root, split, parts[split], photos[split], parameters)
        _make_scenes(root, split, parts[split], photos[split], parameters)
    meta = dict(version=VERSION, parameters=parameters, counts=count_files(root), digits=parts)
    (root / 'meta.json').write_text(json.dumps(meta))
    return meta


def _random_streams(seed: int, task: int, split: str, count: int) -> Iterator[np.random.RandomState]:
    """Yield a source of randomness for each image, so that image i does not depend on the number of images."""
    for index in track(range(count), description=f"{('images', 'scenes')[task]} ({split})"):
        yield np.random.RandomState([seed, task, SPLITS.index(split), index])


def _make_cls(root: Path, split: str, indices: list[int], photos: list[Image.Image],
              parameters: dict[str, Any]) -> None:
    digits, labels = load_handwritten_digits()
    size = parameters['cls_size']
    folders = [root / 'cls' / split / name for name in DIGIT_CLASSES]
    for folder in folders:
        folder.mkdir(parents=True)
    streams = _random_streams(parameters['seed'], 0, split, parameters[f'num_cls_{split}'])
    for number, rng in enumerate(streams):
        rendering, position = divmod(number, len(indices))
        index = indices[position]
        canvas = random_background(rng, size, photos)
        opacity = random_digit(rng, digits[index], (0.6 * size, 0.85 * size), MAX_ANGLE)
        top, left = _random_corner(rng, opacity, size)
        _draw(rng, canvas, opacity, top, left)
        to_image(canvas).save(folders[labels[index]] / f'{index:04d}_{rendering}.png', compress_level=1)


def _make_scenes(root: Path, split: str, indices: list[int], photos: list[Image.Image],
                 parameters: dict[str, Any]) -> None:
    digits, labels = load_handwritten_digits()
    size = parameters['scene_size']
    fewest, most = parameters['digits_per_scene']
    image_folder = root / 'scenes/images' / split
    label_folder = root / 'scenes/annotations' / split
    image_folder.mkdir(parents=True)
    label_folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    streams = _random_streams(parameters['seed'], 1, split, parameters[f'num_scenes_{split}'])
    for number, rng in enumerate(streams):
        canvas = random_background(rng, size, photos)
        # Number of the digit each pixel shows, -1 for the background.
        owner = np.full((size, size), -1)
        areas, shown = [], []
        for index in rng.choice(indices, rng.randint(fewest, most + 1)):
            opacity = random_digit(rng, digits[index], (0.2 * size, 0.5 * size), MAX_ANGLE)
            mask = opacity >= 0.5
            corner = _find_place(rng, mask, owner, areas)
            if corner is None:
                continue
            top, left = corner
            _draw(rng, canvas, opacity, top, left)
            owner[top:top + mask.shape[0], left:left + mask.shape[1]][mask] = len(shown)
            areas.append(mask.sum())
            shown.append(int(index))

        name = f'{number:04d}.png'
        to_image(canvas).save(image_folder / name, compress_level=1)
        values = np.array([1] + [labels[index] + 2 for index in shown], dtype=np.uint8)
        Image.fromarray(values[owner + 1]).save(label_folder / name)
        images.append(dict(id=number, file_name=name, height=size, width=size))
        annotations += [
            dict(
                id=len(annotations) + instance + 1,
                image_id=number,
                category_id=int(labels[index]) + 1,
                digit_index=index,
                iscrowd=0,
                **_describe(owner == instance)) for instance, index in enumerate(shown)
        ]
    coco = dict(
        info=dict(description=f'digit_scenes {split}', version=str(VERSION)),
        images=images,
        annotations=annotations,
        categories=[dict(id=label + 1, name=name, supercategory='digit') for label, name in enumerate(DIGIT_CLASSES)])
    (root / f'scenes/annotations/instances_{split}.json').write_text(json.dumps(coco))


def _random_corner(rng: np.random.RandomState, patch: np.ndarray, size: int) -> tuple[int, int]:
    """Return top and left of a random place for ``patch`` completely inside a square image."""
    return rng.randint(size - patch.shape[0] + 1), rng.randint(size - patch.shape[1] + 1)


def _find_place(rng: np.random.RandomState, mask: np.ndarray, owner: np.ndarray,
                areas: list[int]) -> tuple[int, int] | None:
    """Find top and left of a digit (h, w) where all earlier ones stay legible; None when no trial found a place.

    ``owner`` (H, W) has the number of the digit that each pixel shows, -1 for none; ``areas`` the pixels of each
    earlier digit where nothing covers it.
    """
    visible = np.bincount(owner[owner >= 0], minlength=len(areas))
    for _ in range(PLACEMENT_TRIALS):
        top, left = _random_corner(rng, mask, len(owner))
        hidden = owner[top:top + mask.shape[0], left:left + mask.shape[1]][mask]
        remaining = visible - np.bincount(hidden[hidden >= 0], minlength=len(areas))
        if np.all(remaining >= MIN_VISIBLE * np.array(areas)):
            return top, left
    return None


def _draw(rng: np.random.RandomState, canvas: np.ndarray, opacity: np.ndarray, top: int, left: int) -> None:
    height, width = opacity.shape
    color = random_color(rng, canvas[top:top + height, left:left + width])
    paste(canvas, opacity, top, left, color)


def _describe(mask: np.ndarray) -> dict[str, Any]:
    """Return area, tight box (x, y, width, height) and run lengths of a mask, as COCO has them."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [cols[0], rows[0], cols[-1] - cols[0] + 1, rows[-1] - rows[0] + 1]
    return dict(bbox=[int(value) for value in box], area=int(mask.sum()), segmentation=encode_rle(mask))
