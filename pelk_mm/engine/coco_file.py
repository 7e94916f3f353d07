"""Check a COCO file: that mmdet can read it, learn something from it, and measure against it.

``CocoDataset.parse_data_info`` leaves annotations out without a word, and pycocotools matches by the truth value of an
id. The rules here are theirs: an annotation that they never use may lack anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from .data_checks import off_switch

OFF = off_switch('annotation_files')
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


class CocoFile:
    """The content of a COCO file, of the form that mmdet reads.

    Args:
        content (Any): What was parsed.
        where (str): Config key and path, for the messages.
        classes (Collection[str]): The classes in use; empty for all categories. Defaults to ().
        may_be_empty (bool): Whether it may hold no annotations. Defaults to False.

    Raises:
        ValueError: If something is missing or of another form, or ids are given twice.
    """

    def __init__(self, content: Any, where: str, classes: Collection[str] = (), may_be_empty: bool = False) -> None:
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
        """Check what ``CocoDataset`` and ``LoadAnnotations`` load.

        Args:
            with_mask (bool): Whether the pipeline loads masks.

        Returns:
            str: Why no object can be learned, '' if one can.

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
        """Check that pycocotools measures every object that it should, and with what it needs.

        Args:
            with_mask (bool): Whether masks are measured.

        Returns:
            str: Why no object can be measured, '' if one can.

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
        """Why an annotation is not learned from, or not measured; '' if it is."""
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
    """Whether an id put into pycocotools' array of numbers differs from 0."""
    try:
        return float(value) != 0
    except (TypeError, ValueError, OverflowError):
        return False


def _can_be_drawn(segmentation: Any) -> bool:
    """Whether pycocotools makes a mask of it."""
    if isinstance(segmentation, list):
        first = segmentation[0] if segmentation else []
        return isinstance(first, dict) or isinstance(first, list) and len(first) >= 4
    return isinstance(segmentation, dict) and 'counts' in segmentation
