"""Check COCO files before work starts: that mmdet can read them, learn something from them, and measure against them.

Errors otherwise surface inside workers, after an epoch, or not at all: ``CocoDataset.parse_data_info`` leaves
annotations out without a word, and pycocotools matches by the truth value of an id. The rules here are theirs: an
annotation that they never use may lack anything. Files are read as the data set or the metric reads them, by MMEngine's
file client; what that cannot read is left to them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from mmengine import fileio
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from mmengine.utils import is_abs

from .data_checks import CHECK_TOOL, leaf_datasets, off_switch, type_name
from .loaders import is_local
from .nodes import metrics_of

OFF = off_switch('annotation_files')
# The methods that read COCO files in mmdet, by class; a class with others of its own is not checked.
READING = dict(CocoDataset=('load_data_list', 'parse_data_info'), CocoMetric=('compute_metrics', 'process'))

# Why mmdet and pycocotools leave annotations out.
UNKNOWN_IMAGE = 'an image_id that is of no image of the file'
UNKNOWN_CATEGORY = 'a category_id that is of no category of the classes'
NO_SIZE = 'a bbox or area without size inside the image'
CROWD = 'iscrowd=1 or ignore=1'
NO_POLYGON = 'no polygon of three points or more as segmentation'

# What mmdet reads of every entry, and its form.
ID, NUMBER, BOX = 'a number or a text', 'a number', '[x, y, width, height]'
FORM = dict(
    images=dict(id=ID, file_name=ID, height=NUMBER, width=NUMBER),
    categories=dict(id=ID, name=ID),
    annotations=dict(id=ID, image_id=ID, category_id=ID, bbox=BOX, area=NUMBER))


def check_annotation_files(cfg: Config, modes: Iterable[str]) -> None:
    """Check the annotation files that mmdet's ``CocoDataset`` and ``CocoMetric`` will read in a run.

    Args:
        cfg (Config): The complete config. Not changed.
        modes (Iterable[str]): Of ``'train'``, ``'val'`` and ``'test'``; a test set may lack annotations.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, empty, lacks a key, a category of ``metainfo.classes``, the masks that the
            pipeline loads or what pycocotools needs, or if there is nothing to learn or to measure in it.
    """
    scope = cfg.get('default_scope')
    for mode in modes:
        leaves = [item for item in leaf_datasets(cfg.get(f'{mode}_dataloader')) if isinstance(item, dict)]
        of_coco = [dataset for dataset in leaves if _reads_as(dataset, 'CocoDataset', DATASETS, scope)]
        contents: dict[str, Any] = {}
        reasons = []
        for dataset in of_coco:
            path, root = dataset.get('ann_file') or '', dataset.get('data_root')
            path = path if is_abs(path) or not root else os.path.join(root, path)
            # Others of the loader may have what one lacks.
            may_be_empty = mode == 'test' or len(leaves) > 1
            where = f'{mode}_dataloader.dataset.ann_file'
            file = _open(path, where, dataset, _classes(dataset, scope), may_be_empty, contents)
            if file is not None:
                file.check_classes()
                steps = [step for step in dataset.get('pipeline') or () if type_name(step) == 'LoadAnnotations']
                reasons.append(file.why_nothing_to_learn(any(step.get('with_mask') for step in steps)))
        if mode != 'test' and leaves and len(reasons) == len(leaves) and all(reasons):
            raise ValueError(reasons[0])
        for metric in metrics_of(cfg.get(f'{mode}_evaluator')) if of_coco else ():
            path = metric.get('ann_file')
            if not path or metric.get('format_only') or not _reads_as(metric, 'CocoMetric', METRICS, scope):
                continue
            classes = _classes(of_coco[0], scope)
            file = _open(path, f'{mode}_evaluator.ann_file', metric, classes, mode == 'test', contents)
            if file is not None:
                # One kind, or several.
                reason = file.why_nothing_to_measure('segm' in metric.get('metric', 'bbox'))
                if reason and (mode != 'test' or file.annotations):
                    raise ValueError(reason)


def _open(path: str, key: str, node: Mapping, classes: Collection[str], may_be_empty: bool,
          contents: dict[str, Any]) -> CocoFile | None:
    """Parse a file, once for the same path; None for one that the config's file client does not give."""
    if path not in contents:
        backend_args = node.get('backend_args')
        if is_local(path, backend_args) and not os.path.isfile(path):
            raise FileNotFoundError(f'{key}: there is no annotation file {path}. Correct {key} or data_root, or get '
                                    f'the data: {CHECK_TOOL} coco says how')
        try:
            text = fileio.get(path, backend_args)
        # Clients raise nearly anything; the data set will, too.
        except Exception:
            return None
        try:
            contents[path] = json.loads(text)
        except (ValueError, RecursionError) as error:
            what = f'is damaged ({len(text)} bytes; {error})' if len(text) else 'is empty'
            raise ValueError(f'{key}: {path} {what}: unpack or make it again') from None
    return CocoFile(contents[path], f'{key}: {path}', classes, may_be_empty)


def _reads_as(node: Mapping, name: str, registry: Any, scope: str | None) -> bool:
    """Return whether a config's class is mmdet's of this name, or inherits how that reads its files."""
    kind = _class(node, registry, scope)
    base = next((base for base in getattr(kind, '__mro__', ()) if base.__name__ == name), None)
    return base is not None and base.__module__.startswith('mmdet.') and all(
        getattr(kind, method) is getattr(base, method) for method in READING[name])


def _class(node: Mapping, registry: Any, scope: str | None) -> Any:
    kind = node.get('type')
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as current:
            return current.get(kind)
    return kind


def _classes(dataset: Mapping, scope: str | None) -> list[str]:
    """Return the classes in use: of the config, else of the type; an empty list where a file lists them."""
    own = dataset.get('metainfo') or {}
    classes = own.get('classes') if isinstance(own, Mapping) else own
    if classes is None:
        classes = getattr(_class(dataset, DATASETS, scope), 'METAINFO', {}).get('classes')
    return list(classes) if isinstance(classes, (list, tuple)) else []


class CocoFile:
    """The content of a COCO file, of the form that mmdet reads.

    Args:
        content (Any): What was parsed.
        where (str): Config key and path, for the messages.
        classes (Collection[str]): The classes in use; empty for all categories.
        may_be_empty (bool): Whether it may hold no annotations.

    Raises:
        ValueError: If something is missing or of another form, or ids are given twice.
    """

    def __init__(self, content: Any, where: str, classes: Collection[str], may_be_empty: bool) -> None:
        self.where, self.classes = where, classes
        if not isinstance(content, dict):
            raise self._error(f' must hold an object with images, annotations and categories, got a '
                              f'{type(content).__name__}: it is another format than COCO', off=False)
        missing = [name for name in FORM if name not in content and not (may_be_empty and name == 'annotations')]
        if missing:
            raise self._error(f' lacks {", ".join(missing)}; it has {", ".join(sorted(content))}. Name a file of COCO '
                              'instances', off=False)
        self.parts = {name: content.get(name, []) for name in FORM}
        for name, keys in FORM.items():
            self._check_form(name, keys)
        if not self.parts['images']:
            raise self._error(' lists no images: name the file of another split, or make it again', off=False)
        self.annotations: list[dict] = self.parts['annotations']
        if not self.annotations and not may_be_empty:
            raise self._error(f' has {len(self.parts["images"])} images, but no annotations, so there is nothing to '
                              'learn or to measure: name a file with annotations')
        self.images = {image['id']: image for image in self.parts['images']}
        self._check_unique()
        self.categories = {item['id'] for item in self.parts['categories'] if not classes or item['name'] in classes}

    def check_classes(self) -> None:
        """Check that the classes are among the categories, each with one id.

        Raises:
            ValueError: If not.
        """
        names = [category['name'] for category in self.parts['categories']]
        unknown = [name for name in self.classes if name not in names]
        if unknown:
            raise self._error(f' has no category {", ".join(map(repr, unknown[:5]))} of metainfo.classes '
                              f'({len(unknown)} are missing); it has {_some(names)} ({len(names)} in all). Their '
                              'objects would be left out without a word: set metainfo.classes of the data set')
        ids = Counter(name for name, _ in {(item['name'], item['id']) for item in self.parts['categories']})
        twice = [name for name in self.classes if ids[name] > 1]
        if twice:
            raise self._error(f' has {ids[twice[0]]} categories named {twice[0]!r}, with an id each, so that labels do '
                              'not count up to the number of classes: give each class one id')

    def why_nothing_to_learn(self, with_mask: bool) -> str:
        """Return why ``CocoDataset`` and ``LoadAnnotations`` load nothing to learn from, '' if they load something.

        Raises:
            ValueError: If an annotation that is loaded lacks its mask.
        """
        reasons = Counter(self._why_left_out(item, with_mask) for item in self.annotations)
        if with_mask:
            loaded = [
                item for item in self.annotations
                if not item.get('ignore') and self._why_left_out(item) in ('', CROWD)
            ]
            self._refuse(loaded, lambda item: not item.get('segmentation'),
                         'have no segmentation, but the pipeline loads masks (with_mask=True). Use a file with masks, '
                         'or for boxes only set with_mask=False and leave out the mask head')
        return self._explain(reasons, 'learn')

    def why_nothing_to_measure(self, with_mask: bool) -> str:
        """Return why pycocotools measures nothing, '' if it measures something.

        Raises:
            ValueError: If an annotation that is measured has the id 0 or one that is no number, or lacks ``iscrowd`` or
                its mask.
        """
        used = [
            item for item in self.annotations
            if item['image_id'] in self.images and item['category_id'] in self.categories
        ]
        self._refuse(used, lambda item: not isinstance(item.get('iscrowd'), (int, float)),
                     'lack a number as iscrowd, which ends the evaluation in a KeyError. Add iscrowd=0, or 1 for a '
                     'crowd')
        self._refuse(used, lambda item: not item['iscrowd'] and not _counts_as_matched(item['id']),
                     'have an id that is 0 or no number: pycocotools counts what is matched with id 0 as a miss. '
                     'Number all annotations from 1')
        if with_mask:
            self._refuse(used, lambda item: not _can_be_drawn(item.get('segmentation')),
                         "have no segmentation, but masks are measured (metric 'segm'). Use a file with masks, or set "
                         "metric='bbox'")
        return self._explain(Counter(self._why_left_out(item, measured=True) for item in self.annotations), 'measure')

    def _check_form(self, name: str, keys: Mapping[str, str]) -> None:
        entries = self.parts[name]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._error(f' must hold a list of objects as {name}, as COCO has it: make it again', off=False)
        for number, entry in enumerate(entries):
            missing = [key for key in keys if key not in entry]
            if missing:
                raise self._error(f': entry {number} of {name} (id {entry.get("id")}) lacks {", ".join(missing)}: '
                                  'make the file again with them', off=False)
            for key, form in keys.items():
                if not _has_form(entry[key], form):
                    raise self._error(f': {key} of entry {number} of {name} must be {form}, got '
                                      f'{repr(entry[key])[:100]}: make the file again', off=False)

    def _check_unique(self) -> None:
        """Refuse ids that are given twice: the later entry takes the place of the earlier one."""
        for name, key in (('images', 'file_name'), ('categories', 'name')):
            first: dict = {}
            for entry in self.parts[name]:
                other = first.setdefault(entry['id'], entry)[key]
                if entry[key] != other:
                    raise self._error(f': two {name}, {other!r} and {entry[key]!r}, have the id {entry["id"]!r}: give '
                                      'each an id of its own')
        last = {item['id']: item for item in self.annotations}
        hidden = [item for item in self.annotations if item['image_id'] in self.images and item is not last[item['id']]]
        if hidden:
            raise self._error(f': {len(hidden)} annotations have an id that a later one has too, the first is '
                              f'{hidden[0]["id"]!r}: boxes would go to other images. Number all annotations of the '
                              'file from 1, not those of each image')

    def _why_left_out(self, item: Mapping, with_mask: bool = False, measured: bool = False) -> str:
        """Return why an annotation is not learned from, or not measured; '' if it is."""
        image = self.images.get(item['image_id'])
        if image is None:
            return UNKNOWN_IMAGE
        if item['category_id'] not in self.categories:
            return UNKNOWN_CATEGORY
        x, y, width, height = item['bbox']
        sides = min(x + width, image['width']) - max(x, 0), min(y + height, image['height']) - max(y, 0)
        if measured:
            without_size = width <= 0 or height <= 0 or item['area'] < 0
        else:
            without_size = min(sides) <= 0 or item['area'] <= 0 or width < 1 or height < 1
        if without_size:
            return NO_SIZE
        if item.get('iscrowd') or item.get('ignore') and not measured:
            return CROWD
        polygons = item.get('segmentation')
        if with_mask and isinstance(polygons, list) and not any(
                isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in polygons):
            return NO_POLYGON
        return ''

    def _refuse(self, annotations: Sequence[Mapping], is_wrong: Callable[[Mapping], bool], problem: str) -> None:
        wrong = [item['id'] for item in annotations if is_wrong(item)]
        if wrong:
            raise self._error(f': {len(wrong)} of {len(annotations)} annotations, the first has id {wrong[0]!r}, '
                              f'{problem}')

    def _explain(self, reasons: Counter, purpose: str) -> str:
        if reasons.pop('', 0):
            return ''
        counted = '; '.join(f'{count} have {reason}' for reason, count in reasons.most_common())
        message = f': there is nothing to {purpose} in {len(self.annotations)} annotations: {counted}'
        for reason, key, name in ((UNKNOWN_IMAGE, 'image_id', 'images'), (UNKNOWN_CATEGORY, 'category_id',
                                                                          'categories')):
            if reasons[reason]:
                used, known = (_some(item[key] for item in self.annotations),
                               _some(entry['id'] for entry in self.parts[name]))
                message += f'. {key} is {used}, but the ids of {name} are {known}'
        return str(self._error(f'{message}. Make the file again, with ids that agree, numbers and not texts, and boxes '
                               '[x, y, width, height] in pixels'))

    def _error(self, problem: str, off: bool = True) -> ValueError:
        return ValueError(f'{self.where}{problem}' + (f'. {OFF}' if off else ''))


def _has_form(value: Any, form: str) -> bool:
    if form == BOX:
        return isinstance(value, list) and len(value) == 4 and all(_has_form(side, NUMBER) for side in value)
    if form == NUMBER:
        return type(value) in (int, float) and abs(value) < 1e18
    return not isinstance(value, (list, dict))


def _some(values: Iterable) -> str:
    different = list(dict.fromkeys(values))
    return ', '.join(map(repr, different[:3])) + (', ...' if len(different) > 3 else '')


def _counts_as_matched(value: Any) -> bool:
    """Return whether an id put into pycocotools' array of numbers differs from 0."""
    try:
        return float(value) != 0
    except (TypeError, ValueError, OverflowError):
        return False


def _can_be_drawn(segmentation: Any) -> bool:
    """Return whether pycocotools makes a mask of it."""
    if isinstance(segmentation, list):
        first = segmentation[0] if segmentation else []
        return isinstance(first, dict) or isinstance(first, list) and len(first) >= 4
    return isinstance(segmentation, dict) and 'counts' in segmentation
