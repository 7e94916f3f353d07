"""Check the content of COCO files: that mmdet can read it, learn something from it, and measure against it.

``CocoDataset.parse_data_info`` leaves annotations out without a word, and pycocotools matches by the truth value of an
id. The rules here are theirs: an annotation that they never use may lack anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from .data_checks import off_switch

OFF = off_switch('annotation_files')
UNKNOWN_IMAGE = 'an image_id that is of no image of the file'
UNKNOWN_CATEGORY = 'a category_id that is of no category of the classes'
NO_SIZE = 'a bbox or area without size inside the image'
CROWD = 'iscrowd=1 or ignore=1'
NO_POLYGON = 'no polygon of three points or more as segmentation'


def check_form(content: Any, where: str, may_be_empty: bool) -> None:
    """Check that the parts of a file that mmdet reads are there and of the right types.

    Args:
        content (Any): The parsed file.
        where (str): Config key and path, for the messages.
        may_be_empty (bool): Whether it may hold no annotations.

    Raises:
        ValueError: If something is missing or of another type.
    """
    if not isinstance(content, dict):
        raise ValueError(f'{where} must hold an object with images, annotations and categories, got a '
                         f'{type(content).__name__}: it is another format than COCO')
    needed = ('images', 'categories') if may_be_empty else ('images', 'annotations', 'categories')
    missing = [name for name in needed if name not in content]
    if missing:
        raise ValueError(f'{where} lacks {", ".join(missing)}; it has {", ".join(sorted(content))}. Name a file of '
                         'COCO instances')
    for name in ('images', 'annotations', 'categories'):
        value = content.get(name, [])
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ValueError(f'{where} must hold a list of objects as {name}, as COCO has it: make it again')
    if not content['images']:
        raise ValueError(f'{where} lists no images: name the file of another split, or make it again')
    annotations = content.get('annotations') or ()
    if not annotations and not may_be_empty:
        raise ValueError(f'{where} has {len(content["images"])} images, but no annotations, so there is nothing to '
                         f'learn or to measure: name a file with annotations. {OFF}')
    _check_entries(where, 'images', content['images'], ('id', 'file_name', 'height', 'width'))
    _check_entries(where, 'categories', content['categories'], ('id', 'name'))
    _check_entries(where, 'annotations', annotations, ('id', 'image_id', 'category_id', 'bbox', 'area'))
    wrong = next((item for item in annotations if not _is_box(item['bbox'])), None)
    if wrong is not None:
        raise ValueError(f'{where}: the annotation with id {wrong["id"]} must have a bbox [x, y, width, height], got '
                         f'{str(wrong["bbox"])[:100]}: make the file again with it')
    _check_unique(where, content)


def _check_entries(where: str, name: str, entries: Iterable[Mapping], keys: tuple[str, ...]) -> None:
    for number, entry in enumerate(entries):
        missing = [key for key in keys if key not in entry]
        if missing:
            raise ValueError(f'{where}: entry {number} of {name} (id {entry.get("id")}) lacks {", ".join(missing)}: '
                             'make the file again with them')
        for key in keys:
            value, is_id = entry[key], key.endswith('id') or key == 'name'
            if is_id and isinstance(value, (list, dict)):
                raise ValueError(f'{where}: {key} of entry {number} of {name} must be a number or a text, got '
                                 f'{str(value)[:100]}: make the file again')
            if key in ('height', 'width', 'area') and not _is_number(value):
                raise ValueError(f'{where}: {key} of entry {number} of {name} must be a number, got '
                                 f'{str(value)[:100]!r}: make the file again')


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e18


def _check_unique(where: str, content: Mapping) -> None:
    """Refuse ids that are given twice: the later entry takes the place of the earlier one."""
    images: dict = {}
    for image in content['images']:
        if image['file_name'] != images.setdefault(image['id'], image)['file_name']:
            raise ValueError(f'{where}: two images, {images[image["id"]]["file_name"]} and {image["file_name"]}, have '
                             f'the id {image["id"]!r}: give every image an id of its own. {OFF}')
    categories: dict = {}
    for category in content['categories']:
        if category['name'] != categories.setdefault(category['id'], category)['name']:
            raise ValueError(f'{where}: two categories, {categories[category["id"]]["name"]!r} and '
                             f'{category["name"]!r}, have the id {category["id"]!r}: give every category an id of its '
                             f'own. {OFF}')
    annotations = content.get('annotations') or ()
    last = {item['id']: item for item in annotations}
    hidden = [item for item in annotations if item['image_id'] in images and item is not last[item['id']]]
    if hidden:
        raise ValueError(f'{where}: {len(hidden)} annotations have an id that a later one has too, the first is '
                         f'{hidden[0]["id"]!r}: boxes would go to other images. Number all annotations of the file '
                         f'from 1, not those of each image. {OFF}')


def check_classes(content: Mapping, where: str, classes: Collection[str]) -> None:
    """Check that the categories of a file are those of the classes, each with one id.

    Args:
        content (Mapping): The parsed file.
        where (str): Config key and path, for the messages.
        classes (Collection[str]): Names in ``metainfo.classes``.

    Raises:
        ValueError: If a class is not among the categories, or has several ids.
    """
    names = [category['name'] for category in content['categories']]
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f'{where} has no category {", ".join(map(repr, unknown[:5]))} of metainfo.classes '
                         f'({len(unknown)} are missing); it has {", ".join(map(repr, names[:5]))} ({len(names)} in '
                         'all). Their objects would be left out without a word: set metainfo.classes of the data set. '
                         f'{OFF}')
    ids = Counter(name for name, _ in {(category['name'], category['id']) for category in content['categories']})
    twice = [name for name in classes if ids[name] > 1]
    if twice:
        raise ValueError(f'{where} has {ids[twice[0]]} categories named {twice[0]!r}, with an id each, so that labels '
                         f'do not count up to the number of classes: give each class one id. {OFF}')


def check_to_learn(content: Mapping, where: str, classes: Collection[str], with_mask: bool) -> str:
    """Check that what a pipeline loads is there, by the rules of ``CocoDataset`` and ``LoadAnnotations``.

    Args:
        content (Mapping): The parsed file.
        where (str): Config key and path, for the messages.
        classes (Collection[str]): Names in ``metainfo.classes``; empty for all categories.
        with_mask (bool): Whether the pipeline loads masks.

    Returns:
        str: Why no object can be learned, '' if one can.

    Raises:
        ValueError: If an annotation that is loaded lacks its mask.
    """
    annotations = content.get('annotations') or ()
    images, categories = _known(content, classes)
    reasons = Counter(_why_left_out(item, images, categories, with_mask) for item in annotations)
    without = [
        item['id'] for item in annotations
        if with_mask and not item.get('segmentation') and _why_left_out(item, images, categories) in ('', CROWD)
        and not item.get('ignore')
    ]
    if without:
        key, _, path = where.partition(': ')
        raise ValueError(f'{key}: {len(without)} of {len(annotations)} annotations in {path} have no segmentation, the '
                         f'first has id {without[0]}, but the pipeline loads masks (with_mask=True). Use a file with '
                         f'masks, or for only boxes set with_mask=False and leave out the mask head. {OFF}')
    return '' if reasons.pop('', 0) else _explain(where, content, reasons, 'learn')


def check_to_measure(content: Mapping, where: str, classes: Collection[str], with_mask: bool) -> str:
    """Check that pycocotools measures every object that it should, and with what it needs.

    Args:
        content (Mapping): The parsed file.
        where (str): Config key and path, for the messages.
        classes (Collection[str]): Names of the classes; empty for all categories.
        with_mask (bool): Whether masks are measured.

    Returns:
        str: Why no object can be measured, '' if one can.

    Raises:
        ValueError: If an annotation that is measured has the id 0 or one that is no number, or lacks ``iscrowd`` or its
            mask.
    """
    images, categories = _known(content, classes)
    annotations = content.get('annotations') or ()
    used = [item for item in annotations if item['image_id'] in images and item['category_id'] in categories]
    _refuse(where, used, lambda item: not isinstance(item.get('iscrowd'), (int, float)),
            'lack a number as iscrowd, which ends the evaluation in a KeyError. Add iscrowd=0, or 1 for a crowd')
    _refuse(where, [item for item in used if not item['iscrowd']], lambda item: not _counts_as_matched(item['id']),
            'have an id that is 0 or no number: pycocotools counts what is matched with id 0 as a miss. Number all '
            'annotations from 1')
    if with_mask:
        _refuse(where, used, lambda item: not _can_be_drawn(item.get('segmentation')),
                "have no segmentation, but masks are measured (metric 'segm'). Use a file with masks, or set "
                "metric='bbox'")
    reasons = Counter(_why_left_out(item, images, categories, measured=True) for item in annotations)
    return '' if reasons.pop('', 0) else _explain(where, content, reasons, 'measure')


def _refuse(where: str, annotations: Sequence[Mapping], is_wrong, problem: str) -> None:
    wrong = [item['id'] for item in annotations if is_wrong(item)]
    if wrong:
        raise ValueError(f'{where}: {len(wrong)} of {len(annotations)} annotations, the first has id {wrong[0]!r}, '
                         f'{problem}. {OFF}')


def _known(content: Mapping, classes: Collection[str]) -> tuple[dict, set]:
    """Images by id, and the ids of the categories in use."""
    images = {image['id']: image for image in content['images']}
    return images, {item['id'] for item in content['categories'] if not classes or item['name'] in classes}


def _why_left_out(item: Mapping, images: Mapping, categories: Collection, with_mask: bool = False,
                  measured: bool = False) -> str:
    """Why an annotation is not learned from, or not measured; '' if it is."""
    image = images.get(item['image_id'])
    if image is None:
        return UNKNOWN_IMAGE
    x, y, width, height = item['bbox']
    inside = max(0, min(x + width, image['width']) - max(x, 0)) * max(0, min(y + height, image['height']) - max(y, 0))
    if item['category_id'] not in categories:
        return UNKNOWN_CATEGORY
    if measured:
        without_size = width <= 0 or height <= 0 or item['area'] < 0
    else:
        without_size = inside == 0 or item['area'] <= 0 or width < 1 or height < 1
    if without_size:
        return NO_SIZE
    if item.get('iscrowd') or item.get('ignore') and not measured:
        return CROWD
    polygons = item.get('segmentation')
    if with_mask and isinstance(polygons, list) and not any(
            isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in polygons):
        return NO_POLYGON
    return ''


def _explain(where: str, content: Mapping, reasons: Mapping[str, int], purpose: str) -> str:
    annotations = content.get('annotations') or ()
    counted = '; '.join(f'{count} have {reason}' for reason, count in Counter(reasons).most_common())
    message = f'{where}: there is nothing to {purpose} in {len(annotations)} annotations: {counted}'
    for reason, key, name in ((UNKNOWN_IMAGE, 'image_id', 'images'), (UNKNOWN_CATEGORY, 'category_id', 'categories')):
        if reasons.get(reason):
            used, known = _some(item[key] for item in annotations), _some(entry['id'] for entry in content[name])
            message += f'. {key} is {used}, but the ids of {name} are {known}'
    return (f'{message}. Make the file again, with ids that agree, numbers and not texts, and boxes [x, y, width, '
            f'height] in pixels. {OFF}')


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
