"""Check that label maps of mmseg's data sets fit their images and have the ids of the classes, and that these differ.

Ids are checked as they are packed, since a transform of somebody's own may change them. Sizes are compared as maps are
loaded where nothing resizes them afterwards, else as they are packed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.logging import print_log
from PIL import Image

from pelk_mm.registry import TRANSFORMS

from .data_checks import ImageFileError, advice, off_switch
from .loaders import find_loader, is_known, reads_local_file

# Maps without an ignored pixel after which a data set counts as one that is learned from.
ENOUGH_MAPS = 2000
OFF = off_switch('label_maps')


@TRANSFORMS.register_module()
class CheckLabelMap(BaseTransform):
    """Check that a label map has the size of its image and no ids except those of the classes; for before the packing.

    Our runners put it into the pipelines of mmseg's data sets; ``data_checks.label_maps=False`` leaves it out.

    Args:
        num_classes (int): Ids below are classes; 0 if these are not known.
        ignored (Iterable[int]): Ids that the data set or the model ignores. Defaults to (255, ).
        reduced (bool): Whether the loader turns 0 into 255 and subtracts 1 from other ids. Defaults to False.
        name (str): Of the data set, for the messages. Defaults to 'the data set'.
    """

    def __init__(self,
                 num_classes: int,
                 ignored: Iterable[int] = (255, ),
                 reduced: bool = False,
                 name: str = 'the data set') -> None:
        self.num_classes, self.ignored, self.reduced, self.name = num_classes, set(ignored), reduced, name

    def transform(self, results: dict) -> dict:
        """Check ``gt_seg_map``, if there is one; return the results as they are."""
        if 'gt_seg_map' in results:
            self._check_ids(results['gt_seg_map'], results.get('seg_map_path', ''))
            if 'img' in results and results['gt_seg_map'].shape[:2] != tuple(results.get('ori_shape', ())):
                _check_size(results, results['img'].shape, ' after the resizing')
        return results

    def after_loading(self, step: Any, following: Sequence[Any], results: dict) -> None:
        """Check what cannot be seen any more when the map is packed.

        Args:
            step (Any): The loader.
            following (Sequence[Any]): The transforms between loader and model.
            results (dict): What was loaded.
        """
        if all(map(is_known, following)):
            self._check_bits(step, results['seg_map_path'])
            if not any('Resize' in type(each).__name__ for each in following):
                _check_size(results, results.get('ori_shape') or results['gt_seg_map'].shape)

    def _check_bits(self, step: Any, path: str) -> None:
        """Refuse ids of more than 8 bits where mmseg keeps the last 8, 0 of 256; 255 of 65535 is most often meant."""
        if not reads_local_file(step, path) or not type(step)._load_seg_map.__module__.startswith('mmseg.'):
            return
        from mmcv import imfrombytes
        try:
            with Image.open(path) as opened:
                wide = opened.mode.startswith(('I', 'F'))
        # What Pillow does not know, the loader has read.
        except Exception:
            return
        ids = np.unique(imfrombytes(fileio.get(path), 'unchanged', backend=step.imdecode_backend)) if wide else []
        lost = [label for label in map(int, ids) if label > 255 and label % 256 not in self.ignored]
        if lost:
            raise ImageFileError(f'seg_map_path: {path} has ids up to {lost[-1]}, of which 8 bits, {lost[-1] % 256} '
                                 f'for example, would be kept. Save ids below 256 in 8 bits. {OFF}')

    def _check_ids(self, labels: np.ndarray, path: str) -> None:
        if labels.ndim != 2:
            raise ImageFileError(f'seg_map_path: {path} is a colour image, {_sides(labels.shape)}, not a map of class '
                                 f'ids. Convert it to one grey value for each class, 0, 1, ..., in a PNG file. {OFF}')
        found = np.unique(labels).tolist() if self.num_classes else []
        unknown = [label for label in found if not 0 <= label < self.num_classes and label not in self.ignored]
        if not unknown:
            return
        remedy = 'Set metainfo.classes to what the ids mean, or make these the ignored id'
        first = int(self.reduced)
        if self.reduced:
            remedy += '. (reduce_zero_label is True: 0 in the file is ignored, 1 is the first class)'
        elif unknown == [self.num_classes]:
            remedy += ('. If 0 in the files means "no class" and 1 is the first class, as in ADE20K, set '
                       'reduce_zero_label=True')
        if 255 in self.ignored and 255 in found and max(unknown) >= 64:
            remedy += ('. If these and 255 are grey values that stand for classes, write 0, 1, 2, ... instead: 255 is '
                       'ignored')
        listed = ', '.join(str(label + first) for label in unknown[:8]) + (', ...' if len(unknown) > 8 else '')
        raise ImageFileError(f'seg_map_path: {path} has the ids {listed}, which are of no class: {self.name} has '
                             f'{self.num_classes} classes, ids {first} ... {self.num_classes - 1 + first}, and '
                             f'{", ".join(map(str, sorted(self.ignored)))} is ignored. {remedy}. {OFF}')


def label_check(dataset: Any, ignored: Collection[int] = ()) -> CheckLabelMap:
    """Return the check for one of mmseg's data sets, whose model ignores these ids, too."""
    number = len(dataset.metainfo.get('classes') or ())
    name = type(dataset).__name__
    return CheckLabelMap(number, {dataset.ignore_index, *ignored}, bool(dataset.reduce_zero_label), name)


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
    skipped = {*ignored, *(dataset.ignore_index for dataset in datasets)}
    number = 0
    for dataset, step in zip(datasets, loaders):
        # In an order that goes through all of the range early.
        stride = max(len(dataset) // 10, 1)
        for index in (index for start in range(stride) for index in range(start, len(dataset), stride)):
            found = _read_ids(step, dataset.get_data_info(index))
            if found is None:
                return
            number += 1
            ids |= found
            # Anything except only the first class, and that without ignored pixels for long.
            if ids - skipped - {0} or number >= ENOUGH_MAPS and not ids & skipped:
                return
    if not ids & skipped:
        return
    dataset = datasets[0]
    classes = list(dataset.metainfo['classes'])
    content = f'nothing except {classes[0]!r} and ignored pixels' if ids - skipped else 'ignored pixels only'
    message = (f'seg_map_path: all {number} label maps of {type(dataset).__name__} ({len(classes)} classes; '
               f'{dataset.data_prefix.get("seg_map_path")}) have {content}')
    # These make ignored pixels of others, so that a few maps may well show one class only.
    if ids - skipped and any(item.reduce_zero_label or item.label_map for item in datasets):
        print_log(message, 'current', logging.WARNING)
        return
    remedy = (f'{", ".join(map(str, sorted(ids & skipped)))} in the files is ignored. If it stands for a class, as in '
              'masks of 0 and 255, write the class ids 0, 1, ... instead')
    if dataset.reduce_zero_label:
        remedy = ('reduce_zero_label is True: 0 in the files, and 255, is ignored, and 1 is the first class. Set it to '
                  'False if 0 is a class, and write class ids, not grey values such as 255')
    raise ImageFileError(f'{message}, so there is nothing to learn or to measure. {remedy}, or {advice(dataset)}. '
                         f'{OFF}')


def _label_loader(dataset: Any) -> Any:
    """Return the loader of label maps whose ids reach the model as they are; None if it is not known or not checked."""
    if not hasattr(dataset, 'reduce_zero_label') or len(dataset.metainfo.get('classes') or ()) < 2:
        return None
    step, following = find_loader(dataset, 'seg_map_path')
    return step if all(map(is_known, following)) else None


def _read_ids(step: Any, sample: dict) -> set[int] | None:
    """Return the ids in a sample's label map; None if it is not read here."""
    if not reads_local_file(step, sample.get('seg_map_path')):
        return None
    try:
        return set(np.unique(step(dict(sample, seg_fields=[]))['gt_seg_map']).tolist())
    # The pipeline will meet it again, and include the path in the error.
    except Exception:
        return None


def _check_size(results: dict, size: Sequence[int], when: str = '') -> None:
    shape = results['gt_seg_map'].shape[:2]
    if shape != tuple(size[:2]):
        raise ImageFileError(f'seg_map_path: {results.get("seg_map_path")} is {_sides(shape)} (height x width){when}, '
                             f'but its image {results.get("img_path")} is {_sides(size[:2])}. Check that they belong '
                             f'together (data_prefix, img_suffix, seg_map_suffix), or make one of both again. {OFF}')


def _sides(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))
