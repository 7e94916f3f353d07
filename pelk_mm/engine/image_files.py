"""Images and label maps that are missing, damaged or wrong are named, before training learns from them.

OpenCV decodes half a JPEG without a word, and what else goes wrong deep in a data worker does not say in which file. So
the pipelines of a built data set are made to look at every file as it is loaded, for the price of reading its first and
last bytes, and at every label map for that of one comparison.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from torch.utils.data import DataLoader, Dataset

CHECK_TOOL = 'python tools/dataset_converters/check_dataset.py'

# Files of a data set that are looked for when a run starts, at most; all of ImageNet would take minutes.
LOOKED_FOR = 2000

_HEAD, _TAIL = 32, 12


class ImageFileError(ValueError):
    """A file that is no whole image, or a label map that does not fit. The message names it and the cure."""


def build_checked_dataloader(build: Callable[..., DataLoader], dataloader: Any, **kwargs) -> DataLoader:
    """Build a loader by the runner's own method, look for the files of its data, and have them checked as they load.

    Args:
        build (Callable): ``runner.build_dataloader``.
        dataloader (dict | DataLoader): For ``build``, most often a config.
        **kwargs: For ``build``.

    Raises:
        FileNotFoundError: If files are missing.
        ImageFileError: If files are empty, or there are none.
    """
    try:
        loader = build(dataloader, **kwargs)
    except ValueError as error:
        # MMEngine's data sets put their samples into one array.
        if 'need at least one array to concatenate' in str(error):
            raise ImageFileError(f'{_describe(dataloader)} has no samples. Correct data_root, data_prefix, ann_file, '
                                 f'the suffixes or filter_cfg, or get the data: {CHECK_TOOL} says how') from error
        raise
    for dataset in _leaves(loader.dataset):
        if is_main_process():
            look_for_files(dataset)
        check_when_loading(dataset)
    return loader


def look_for_files(dataset: Any) -> None:
    """Look whether files of a data set are there and not empty, evenly spaced over it, at most ``LOOKED_FOR`` samples.

    Args:
        dataset (Any): One of ``mmengine.dataset.BaseDataset``'s kind; others are left alone.

    Raises:
        FileNotFoundError: If files are missing.
        ImageFileError: If files are empty.
    """
    if not hasattr(dataset, 'get_data_info'):
        return
    count = min(len(dataset), LOOKED_FOR)
    samples = [dataset.get_data_info(round(i * (len(dataset) - 1) / max(count - 1, 1))) for i in range(count)]
    for key in ('img_path', 'seg_map_path'):
        paths = [path for sample in samples if _is_local(path := sample.get(key))]
        missing = [path for path in paths if not os.path.isfile(path)]
        empty = [path for path in paths if path not in missing and not os.path.getsize(path)]
        where = f'{type(dataset).__name__}: of {len(paths)} files looked for ({key})'
        if missing:
            raise FileNotFoundError(f'{where} {len(missing)} are not there, the first is {missing[0]}. Correct '
                                    f'data_root, data_prefix and the suffixes of the data set, or get the data: '
                                    f'{CHECK_TOOL} says how')
        if empty:
            raise ImageFileError(f'{where} {len(empty)} are empty, the first is {empty[0]}. {_cure(empty[0])}')


def check_when_loading(dataset: Any) -> None:
    """Make a data set's pipeline check image files and label maps as it loads them. Doing it again changes nothing.

    Args:
        dataset (Any): Of ``mmengine.dataset.BaseDataset``'s kind; others are left alone. Changed in place.
    """
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(getattr(pipeline, 'transforms', None), list):
        # What tells mmseg's data sets from others.
        check_pipeline(pipeline, _LabelMapCheck(dataset) if hasattr(dataset, 'reduce_zero_label') else None)


def read_image(path: str, check: bool = True) -> np.ndarray:
    """Read a picture (H, W, 3), uint8, BGR.

    Args:
        path (str): The file.
        check (bool): Look first whether it is whole; without need if :func:`find_damage` did. Defaults to True.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageFileError: If it is no whole image.
    """
    from mmcv.image import imread
    damage = find_damage(path) if check else ''
    image = None if damage else imread(path)
    if image is None:
        raise ImageFileError(f'{path} {damage or "is damaged or no image"}. {_cure(path)}')
    return image


def find_damage(path: str) -> str:
    """What is wrong with an image file, in words; '' if nothing is seen.

    Its first and last bytes are read; only if these look wrong the whole is decoded.

    Args:
        path (str): The file.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    with open(path, 'rb') as file:
        head, size = file.read(_HEAD), os.fstat(file.fileno()).st_size
        file.seek(max(size - _TAIL, 0))
        tail = file.read()
    if not head:
        return 'is empty'
    if head.startswith(b'version https://git-lfs'):
        return 'is a pointer of Git LFS, not the file itself (git lfs pull)'
    if _looks_whole(head, tail, size):
        return ''
    from mmcv.image import imread
    try:
        imread(path, 'unchanged', backend='pillow')
    # Pillow raises nearly anything.
    except Exception as error:
        return f'is damaged or no image ({size} bytes; {str(error).rstrip(".") or type(error).__name__})'
    return ''


def _looks_whole(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a file of one of the usual formats ends as it should; False for others."""
    if head.startswith(b'\xff\xd8'):
        return tail.endswith(b'\xff\xd9')
    if head.startswith(b'\x89PNG'):
        return tail.endswith(b'IEND\xaeB`\x82')
    if head.startswith(b'BM'):
        return int.from_bytes(head[2:6], 'little') <= size
    if head.startswith(b'RIFF'):
        return int.from_bytes(head[4:8], 'little') + 8 <= size
    return False


def check_pipeline(pipeline: Any, label_check: Callable[[str, dict], None] | None = None) -> None:
    """Make a pipeline, and those in it, check files as it loads them.

    Args:
        pipeline (Any): A ``Compose``. Changed in place.
        label_check (Callable, optional): Called with the name of every label map and what was loaded.
    """
    from mmcv.transforms import LoadAnnotations, LoadImageFromFile
    steps = pipeline.transforms
    for i, step in enumerate(steps):
        if isinstance(step, LoadImageFromFile):
            steps[i] = _CheckedLoading(step, 'img_path')
        elif isinstance(step, LoadAnnotations):
            steps[i] = _CheckedLoading(step, 'seg_map_path', label_check)
        elif not isinstance(step, _CheckedLoading):
            for inner in _pipelines_in(step):
                check_pipeline(inner, label_check)


def _pipelines_in(step: Any) -> Iterator[Any]:
    """The pipelines that a transform holds, such as those of ``TestTimeAug``."""
    for value in getattr(step, '__dict__', {}).values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(getattr(item, 'transforms', None), list):
                yield item


class _CheckedLoading:
    """A loading transform that looks at the file before, and names it whatever happens."""

    def __init__(self, step: Callable, key: str, then: Callable[[str, dict], None] | None = None) -> None:
        self.step, self.key, self.then = step, key, then

    def __call__(self, results: dict) -> dict | None:
        path = results.get(self.key)
        if path is None:
            return self.step(results)
        ignore = getattr(self.step, 'ignore_empty', False)
        try:
            damage = find_damage(path) if _is_local(path) else ''
            if damage and not ignore:
                raise ImageFileError(f'{self.key}: {path} {damage}. {_cure(path)}')
            loaded = None if damage else self.step(results)
        except ImageFileError:
            raise
        except FileNotFoundError as error:
            if ignore:
                return None
            raise FileNotFoundError(f'{self.key}: there is no file {path}. Correct data_root, data_prefix or the list '
                                    f'of the data set, or get the file: {CHECK_TOOL} says how') from error
        except Exception as error:
            raise ImageFileError(f'{self.key}: {path} cannot be loaded by {type(self.step).__name__} '
                                 f'({type(error).__name__}: {error}). {_cure(path)}') from error
        if self.then is not None and loaded is not None:
            self.then(path, loaded)
        return loaded

    def __repr__(self) -> str:
        return repr(self.step)


class _LabelMapCheck:
    """Whether a label map has the size of its image and no ids but those of the data set's classes.

    Args:
        dataset (Any): Of mmseg.
    """

    def __init__(self, dataset: Any) -> None:
        self.name = type(dataset).__name__
        self.num_classes = len(dataset.metainfo.get('classes') or ())
        self.ignore_index = dataset.ignore_index
        self.reduced = bool(dataset.reduce_zero_label)

    def __call__(self, path: str, results: dict) -> None:
        labels, size = results['gt_seg_map'], results.get('ori_shape')
        if labels.ndim != 2:
            raise ImageFileError(f'seg_map_path: {path} is a colour picture, {_sides(labels.shape)}, not a map of '
                                 'class ids. Convert it to one grey value for each class, 0, 1, ..., in a PNG file')
        _refuse_large_ids(path)
        if size is not None and labels.shape != tuple(size):
            raise ImageFileError(f'seg_map_path: {path} is {_sides(labels.shape)} (height x width), but its image '
                                 f'{results.get("img_path")} is {_sides(size)}. Check that they belong together '
                                 '(data_prefix, img_suffix, seg_map_suffix), or make one of both again')
        if not self.num_classes:
            return
        unknown = np.unique(labels[(labels >= self.num_classes) & (labels != self.ignore_index)]).tolist()
        if not unknown:
            return
        cure = 'Set metainfo.classes to what the ids mean, or make these the ignored id'
        if self.reduced:
            unknown = [label + 1 for label in unknown]
            cure += '. (reduce_zero_label is True: 0 in the file is ignored, 1 is the first class)'
        elif unknown == [self.num_classes]:
            cure += ('. If 0 in the files means "no class" and 1 is the first class, as in ADE20K, set '
                     'reduce_zero_label=True')
        first = int(self.reduced)
        raise ImageFileError(f'seg_map_path: {path} has the ids {", ".join(map(str, unknown[:8]))}'
                             f'{", ..." if len(unknown) > 8 else ""}, which are of no class: {self.name} has '
                             f'{self.num_classes} classes, ids {first} ... {self.num_classes - 1 + first}, and '
                             f'{self.ignore_index} is ignored. {cure}')


def _refuse_large_ids(path: str) -> None:
    """The loader keeps the last 8 of 16 bits, so that 256 becomes 0."""
    if not _is_local(path):
        return
    with open(path, 'rb') as file:
        head = file.read(_HEAD)
    # The number of bits in the header of a PNG file.
    if not head.startswith(b'\x89PNG') or head[24] < 16:
        return
    from mmcv.image import imread
    highest = int(imread(path, 'unchanged', backend='pillow').max())
    if highest > 255:
        raise ImageFileError(f'seg_map_path: {path} has ids up to {highest}, of which 8 bits, {highest % 256} for '
                             'example, would be kept. Save ids below 256 in 8 bits')


def _leaves(dataset: Any) -> Iterator[Any]:
    """The data sets that others wrap, themselves if they wrap none."""
    children = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    wrapped = [child for child in children if isinstance(child, Dataset)]
    for child in wrapped:
        yield from _leaves(child)
    if not wrapped:
        yield dataset


def _describe(config: Any) -> str:
    while isinstance(config, dict) and 'dataset' in config:
        config = config['dataset']
    told = [f'{key}={config[key]!r}' for key in ('data_root', 'data_prefix', 'ann_file') if config.get(key)]
    kind = config.get('type', 'a data set')
    return f'{getattr(kind, "__name__", kind)} ({", ".join(told)})'


def _is_local(path: Any) -> bool:
    return isinstance(path, str) and '://' not in path


def _cure(path: str) -> str:
    folder = shlex.quote(os.path.dirname(path) or '.')
    return f'Get it again, or take it out of the data set; {CHECK_TOOL} images --root {folder} finds all such files'


def _sides(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape))
