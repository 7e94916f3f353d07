"""Check that label maps of mmseg's data sets fit their images and have the ids of the classes, and that these differ.

Where a map is checked depends on what follows its loader. Transforms of the toolboxes leave ids as they are, so these
are checked as they are loaded; a transform of somebody's own may change them, so that only those that are packed count.
Sizes are compared where nothing resizes the map afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.logging import print_log
from PIL import Image

from .data_checks import ImageFileError, advice, off_switch
from .loaders import find_loader, is_known, reads_local_file

# Maps without an ignored pixel after which a data set counts as one that is learned from.
ENOUGH_MAPS = 2000
OFF = off_switch('label_maps')


class LabelMapCheck:
    """Check that a label map has the size of its image and no ids except those of the data set's classes.

    Args:
        dataset (Any): Of mmseg.
        ignored (Collection[int]): Ids that the model ignores beside ``dataset.ignore_index``. Defaults to ().
    """

    def __init__(self, dataset: Any, ignored: Collection[int] = ()) -> None:
        self.name = type(dataset).__name__
        self.num_classes = len(dataset.metainfo.get('classes') or ())
        self.ignored = _ignored(dataset, ignored)
        self.reduced = bool(dataset.reduce_zero_label)
        self._when_packed: list[Callable[[str, dict], None]] = []

    def after_loading(self, following: Sequence[Any]) -> Callable[[Any, dict], None]:
        """Return the check for a loader that these transforms follow; what they may change waits until the packing."""
        known = all(map(is_known, following))
        resized = not known or any('Resize' in type(step).__name__ for step in following)
        self._when_packed = [*([self._check_ids] if not known else []), *([self._check_final_size] if resized else [])]

        def check(step: Any, results: dict) -> None:
            path = results['seg_map_path']
            if known:
                self._check_bits(step, path)
                self._check_ids(path, results)
            if not resized:
                self._check_size(path, results, results.get('ori_shape'))

        return check

    def before_packing(self, results: dict) -> None:
        """Check what transforms may have changed, just before the sample is packed."""
        if 'gt_seg_map' in results:
            for check in self._when_packed:
                check(results.get('seg_map_path', ''), results)

    def _check_final_size(self, path: str, results: dict) -> None:
        size = results['gt_seg_map'].shape[:2]
        if 'img' in results and size != tuple(results.get('ori_shape', ())):
            self._check_size(path, results, results['img'].shape[:2], ' after the resizing')

    def _check_size(self, path: str, results: dict, size: Sequence[int] | None, when: str = '') -> None:
        shape = results['gt_seg_map'].shape[:2]
        if size is not None and shape != tuple(size):
            raise ImageFileError(f'seg_map_path: {path} is {_sides(shape)} (height x width){when}, but its image '
                                 f'{results.get("img_path")} is {_sides(size)}. Check that they belong together '
                                 f'(data_prefix, img_suffix, seg_map_suffix), or make one of both again. {OFF}')

    def _check_bits(self, step: Any, path: str) -> None:
        """Refuse ids of more than 8 bits where mmseg keeps the last 8, 0 of 256; 255 of 65535 is most often meant."""
        if not reads_local_file(step, path) or not type(step)._load_seg_map.__module__.startswith('mmseg.'):
            return
        from mmcv import imfrombytes
        try:
            with Image.open(path) as opened:
                mode = opened.mode
        # What Pillow does not know, the loader has read.
        except Exception:
            return
        if not mode.startswith(('I', 'F')):
            return
        ids = np.unique(imfrombytes(fileio.get(path), flag='unchanged', backend=step.imdecode_backend))
        lost = [label for label in ids[ids > 255].tolist() if label % 256 not in self.ignored]
        if lost:
            raise ImageFileError(f'seg_map_path: {path} has ids up to {lost[-1]}, of which 8 bits, {lost[-1] % 256} '
                                 f'for example, would be kept. Save ids below 256 in 8 bits. {OFF}')

    def _check_ids(self, path: str, results: dict) -> None:
        labels = results['gt_seg_map']
        if labels.ndim != 2:
            raise ImageFileError(f'seg_map_path: {path} is a colour image, {_sides(labels.shape)}, not a map of '
                                 f'class ids. Convert it to one grey value for each class, 0, 1, ..., in a PNG file. '
                                 f'{OFF}')
        if not self.num_classes:
            return
        found = np.unique(labels).tolist()
        unknown = [label for label in found if not 0 <= label < self.num_classes and label not in self.ignored]
        if not unknown:
            return
        remedy = 'Set metainfo.classes to what the ids mean, or make these the ignored id'
        if self.reduced:
            unknown = [label + 1 for label in unknown]
            remedy += '. (reduce_zero_label is True: 0 in the file is ignored, 1 is the first class)'
        elif unknown == [self.num_classes]:
            remedy += ('. If 0 in the files means "no class" and 1 is the first class, as in ADE20K, set '
                       'reduce_zero_label=True')
        if 255 in self.ignored and 255 in found and max(unknown) >= 64:
            remedy += ('. If these and 255 are grey values that stand for classes, write 0, 1, 2, ... instead: 255 is '
                       'ignored')
        first = int(self.reduced)
        raise ImageFileError(f'seg_map_path: {path} has the ids {", ".join(map(str, unknown[:8]))}'
                             f'{", ..." if len(unknown) > 8 else ""}, which are of no class: {self.name} has '
                             f'{self.num_classes} classes, ids {first} ... {self.num_classes - 1 + first}, and '
                             f'{", ".join(map(str, sorted(self.ignored)))} is ignored. {remedy}. {OFF}')


def check_label_content(datasets: Sequence[Any], ignored: Collection[int] = ()) -> None:
    """Check that the label maps of a loader hold at least two classes.

    Maps are read by the pipeline's own loader until a second class shows, most often in the first one. Only where no
    second class shows are all of them read. Wrong are maps of ignored pixels only, and maps of the first class and
    ignored pixels, as those of 0 and 255 are.

    Args:
        datasets (Sequence[Any]): What the loader's data set is made of. Others than mmseg's, and those whose loader or
            later transforms are not known, are not checked, and then none of the loader is.
        ignored (Collection[int]): Ids that the model ignores.

    Raises:
        ImageFileError: If every pixel is ignored, or all that are not have the first of several classes.
    """
    loaders = [_label_loader(dataset) for dataset in datasets]
    if not all(loaders) or not datasets:
        return
    ids: set[int] = set()
    skipped = set().union(*(_ignored(dataset, ignored) for dataset in datasets))
    number = 0
    for dataset, step in zip(datasets, loaders):
        for index in _spread(len(dataset)):
            found = _read_ids(step, dataset.get_data_info(index))
            if found is None:
                return
            number += 1
            ids |= found
            # Anything except only the first class, and that without ignored pixels for long.
            if ids - skipped - {0} or number >= ENOUGH_MAPS and not ids & skipped:
                return
    dataset = datasets[0]
    classes = list(dataset.metainfo['classes'])
    where = (f'seg_map_path: all {number} label maps of {type(dataset).__name__} ({len(classes)} classes; '
             f'{dataset.data_prefix.get("seg_map_path")}) have ')
    # These make ignored pixels of others, so that a few maps may well show one class only.
    made_ignored = any(item.reduce_zero_label or item.label_map for item in datasets)
    if not ids & skipped:
        return
    if ids - skipped and made_ignored:
        print_log(f'{where}nothing except {classes[0]!r} and ignored pixels', 'current', logging.WARNING)
        return
    content = f'nothing except {classes[0]!r} and ignored pixels' if ids - skipped else 'ignored pixels only'
    if dataset.reduce_zero_label:
        remedy = ('reduce_zero_label is True: 0 in the files, and 255, is ignored, and 1 is the first class. Set it to '
                  'False if 0 is a class, and write class ids, not grey values such as 255')
    else:
        remedy = (f'{", ".join(map(str, sorted(ids & skipped)))} in the files is ignored. If it stands for a class, as '
                  'in masks of 0 and 255, write the class ids 0, 1, ... instead')
    raise ImageFileError(f'{where}{content}, so there is nothing to learn or to measure. {remedy}, or '
                         f'{advice(dataset)}. {OFF}')


def _label_loader(dataset: Any) -> Any:
    """The loader of label maps whose ids reach the model as they are; None if that is not known or not checked."""
    if not hasattr(dataset, 'reduce_zero_label') or len(dataset.metainfo.get('classes') or ()) < 2:
        return None
    step, following = find_loader(dataset, 'seg_map_path')
    return step if all(map(is_known, following)) else None


def _read_ids(step: Any, sample: dict) -> set[int] | None:
    """The ids in a sample's label map; None if it is not read here."""
    if not reads_local_file(step, sample.get('seg_map_path')):
        return None
    try:
        labels = step(dict(sample, seg_fields=[]))['gt_seg_map']
    # The pipeline will meet it again, and include the path in the error.
    except Exception:
        return None
    return set(np.unique(labels).tolist())


def _ignored(dataset: Any, ignored: Collection[int]) -> set[int]:
    return {dataset.ignore_index, *ignored}


def _spread(length: int) -> list[int]:
    """Every index, in an order that goes through all of the range early."""
    stride = max(length // 10, 1)
    return [index for start in range(stride) for index in range(start, length, stride)]


def _sides(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))
