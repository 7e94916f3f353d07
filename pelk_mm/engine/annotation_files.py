"""COCO annotation files are looked through before work starts: what they lack shows only deep in a data worker."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping

from mmengine.config import Config
from mmengine.registry import DATASETS

CHECK_TOOL = 'python tools/dataset_converters/check_dataset.py'


def check_annotation_files(cfg: Config, modes: Iterable[str]) -> None:
    """Check the annotation file of every ``CocoDataset`` that a run will read.

    Files that are not on this machine (``s3://...``) are left to the run.

    Args:
        cfg (Config): The whole config. Not changed.
        modes (Iterable[str]): Of ``'train'``, ``'val'`` and ``'test'``; a test set may lack annotations.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, empty, lacks a key, a category of ``metainfo.classes``, or the masks that the
            pipeline loads.
    """
    for mode in modes:
        for dataset in _coco_datasets(cfg.get(f'{mode}_dataloader')):
            path = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
            if '://' in path:
                continue
            loading = [step for step in dataset.get('pipeline') or () if _type(step) == 'LoadAnnotations']
            check_coco_file(
                path,
                classes=_classes(dataset, cfg.get('default_scope')),
                with_mask=any(step.get('with_mask') for step in loading),
                may_be_empty=mode == 'test',
                key=f'{mode}_dataloader.dataset.ann_file')


def check_coco_file(path: str,
                    classes: Iterable[str] = (),
                    with_mask: bool = False,
                    may_be_empty: bool = False,
                    key: str = 'ann_file') -> None:
    """Check a file of COCO's format.

    Args:
        path (str): The file.
        classes (Iterable[str]): Names that its categories must contain. Defaults to ().
        with_mask (bool): Whether every annotation needs a ``segmentation``. Defaults to False.
        may_be_empty (bool): Whether it may hold no annotations. Defaults to False.
        key (str): The config key that names the file, for the messages. Defaults to 'ann_file'.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is not what is asked for.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{key}: there is no annotation file {path}. Correct {key} or data_root, or get the '
                                f'data: {CHECK_TOOL} says how')
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        size = os.path.getsize(path)
        what = 'is empty' if size == 0 else f'is damaged ({size} bytes; {error})'
        raise ValueError(f'{key}: {path} {what}: unpack or make it again') from None
    if not isinstance(content, dict):
        raise ValueError(f'{key}: {path} must hold an object with images, annotations and categories, got a '
                         f'{type(content).__name__}: it is another format than COCO')
    needed = ('images', 'categories') if may_be_empty else ('images', 'annotations', 'categories')
    missing = [name for name in needed if name not in content]
    if missing:
        raise ValueError(f'{key}: {path} lacks {", ".join(missing)}; it has {", ".join(sorted(content))}. Name a file '
                         'of COCO instances')
    for name in ('images', 'annotations', 'categories'):
        value = content.get(name, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ValueError(f'{key}: {path} must hold a list of objects as {name}, as COCO has it: make it again')
    if not content['images']:
        raise ValueError(f'{key}: {path} lists no images: name the file of another split, or make it again')
    annotations = content.get('annotations') or ()
    if not annotations and not may_be_empty:
        raise ValueError(f'{key}: {path} has {len(content["images"])} images, but no annotations, so there is nothing '
                         'to learn or to measure: name a file with annotations')
    _check_entries(f'{key}: {path}', 'images', content['images'], ('id', 'file_name', 'height', 'width'))
    _check_entries(f'{key}: {path}', 'categories', content['categories'], ('id', 'name'))
    _check_entries(f'{key}: {path}', 'annotations', annotations, ('id', 'image_id', 'category_id', 'bbox', 'area'))
    wrong = next((item for item in annotations if not _is_box(item['bbox'])), None)
    if wrong is not None:
        raise ValueError(f'{key}: {path}: the annotation with id {wrong["id"]} must have a bbox [x, y, width, height], '
                         f'got {str(wrong["bbox"])[:100]}: make the file again with it')
    names = [category['name'] for category in content['categories']]
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f'{key}: {path} has no category {", ".join(map(repr, unknown[:5]))} of metainfo.classes '
                         f'({len(unknown)} are missing); it has {", ".join(map(repr, names[:5]))} ({len(names)} in '
                         'all). Their objects would be left out without a word: set metainfo.classes of the data set')
    without = [item['id'] for item in annotations if not item.get('segmentation')] if with_mask else []
    if without:
        raise ValueError(f'{key}: {len(without)} of {len(annotations)} annotations in {path} have no segmentation, the '
                         f'first has id {without[0]}, but the pipeline loads masks (with_mask=True). Use a file with '
                         'masks, or for boxes alone set with_mask=False and leave out the mask head')


def _check_entries(where: str, name: str, entries: Iterable[Mapping], keys: tuple[str, ...]) -> None:
    for number, entry in enumerate(entries):
        missing = [key for key in keys if key not in entry]
        if missing:
            raise ValueError(f'{where}: entry {number} of {name} (id {entry.get("id")}) lacks {", ".join(missing)}: '
                             'make the file again with them')


def _is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)


def _coco_datasets(node) -> Iterator[dict]:
    """The configs of the COCO data sets in a loader, also those that others wrap."""
    if isinstance(node, dict):
        if _type(node) == 'CocoDataset':
            yield node
        node = [node.get('dataset'), node.get('datasets')]
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _coco_datasets(child)


def _type(node: Mapping) -> str:
    """The name of a config's type, a string with or without scope, or a class."""
    kind = node.get('type')
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def _classes(dataset: Mapping, scope: str | None) -> Iterable[str]:
    """The classes in use: of the config, else of the type; none where a file lists them."""
    own = dataset.get('metainfo') or {}
    classes = own.get('classes') if isinstance(own, Mapping) else own
    if classes is None:
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = dataset['type'] if isinstance(dataset['type'], type) else registry.get(dataset['type'])
        classes = getattr(kind, 'METAINFO', {}).get('classes')
    return classes if isinstance(classes, (list, tuple)) else ()
