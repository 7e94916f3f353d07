"""Check image files and label maps as they are loaded, and include their path in every error.

OpenCV decodes half a JPEG without a word, and what else goes wrong deep in a data worker does not say in which file. So
the pipelines of a built data set check every file that they read from this machine, for the price of reading its first
and last bytes, and every label map for that of one comparison. Files behind another file client and loaders that are
not the toolboxes' own are left to these; :mod:`pelk_mm.engine.data_checks` has the switches.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from torch.utils.data import DataLoader

from ..image_decoding import decoding_error
from .data_checks import CHECK_TOOL, DATA_CHECKS, ImageFileError, advice, leaf_datasets, off_switch, type_name
from .label_maps import CheckLabelMap, check_label_content, label_check
from .loaders import file_key, find_loader, flat_steps, inner_pipelines, is_known, reads_local_file

# Files of a data set that are looked for when a run starts, at most; all of ImageNet would take minutes.
MAX_FILES_CHECKED = 2000


def build_checked_dataloader(build: Callable[..., DataLoader],
                             dataloader: Any,
                             checks: Collection[str] = tuple(DATA_CHECKS),
                             ignored: Collection[int] = (),
                             **kwargs) -> DataLoader:
    """Build a loader by the runner's own method, look for the files of its data, and have them checked as they load.

    Args:
        build (Callable): ``runner.build_dataloader``.
        dataloader (dict | DataLoader): For ``build``, most often a config.
        checks (Collection[str]): Names of ``DATA_CHECKS`` to make. Defaults to all.
        ignored (Collection[int]): Ids of label maps that the model ignores, beside those that the data set names.
        **kwargs: For ``build``.

    Raises:
        FileNotFoundError: If files are missing.
        ImageFileError: If files are empty, there are none, or label maps have nothing to learn.
    """
    try:
        loader = build(dataloader, **kwargs)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{_describe(dataloader)}: {error}. Correct data_root, data_prefix or ann_file, or '
                                f'{advice(next(leaf_datasets(dataloader)))}') from error
    except ValueError as error:
        # MMEngine's data sets put their samples into one array.
        if 'need at least one array to concatenate' in str(error):
            raise ImageFileError(f'{_describe(dataloader)} has no samples. Correct data_root, data_prefix, ann_file, '
                                 f'the suffixes or filter_cfg, or {advice(next(leaf_datasets(dataloader)))}') from error
        raise
    datasets = list(leaf_datasets(loader.dataset))
    if is_main_process():
        for dataset in datasets:
            if 'missing_files' in checks:
                look_for_files(dataset)
        if 'label_maps' in checks:
            check_label_content(datasets, ignored)
    for dataset in datasets:
        check_when_loading(dataset, checks, ignored)
    return loader


def look_for_files(dataset: Any) -> None:
    """Check that files of a data set are there and not empty.

    At most ``MAX_FILES_CHECKED`` samples, evenly spaced, and only files that a toolbox's own loader reads from this
    machine.

    Args:
        dataset (Any): One of ``mmengine.dataset.BaseDataset``'s kind; others are not checked.

    Raises:
        FileNotFoundError: If files are missing.
        ImageFileError: If files are empty.
    """
    if not hasattr(dataset, 'get_data_info'):
        return
    found = {key: find_loader(dataset, key)[0] for key in ('img_path', 'seg_map_path')}
    loaders = {key: step for key, step in found.items() if step and not getattr(step, 'ignore_empty', False)}
    count = min(len(dataset), MAX_FILES_CHECKED) if loaders else 0
    samples = [dataset.get_data_info(round(i * (len(dataset) - 1) / max(count - 1, 1))) for i in range(count)]
    for key, step in loaders.items():
        paths = [path for sample in samples if reads_local_file(step, path := sample.get(key))]
        missing = [path for path in paths if not os.path.isfile(path)]
        empty = [path for path in paths if os.path.isfile(path) and not os.path.getsize(path)]
        where = f'{type(dataset).__name__}: of {len(paths)} files looked for ({key})'
        if missing:
            raise FileNotFoundError(f'{where} {len(missing)} are not there, the first is {missing[0]}. Correct '
                                    f'data_root, data_prefix and the suffixes of the data set, or {advice(dataset)}. '
                                    f'{off_switch("missing_files")}')
        if empty:
            raise ImageFileError(f'{where} {len(empty)} are empty, the first is {empty[0]}. {_fix(empty[0])}. '
                                 f'{off_switch("missing_files")}')


def check_when_loading(dataset: Any,
                       checks: Collection[str] = tuple(DATA_CHECKS),
                       ignored: Collection[int] = ()) -> None:
    """Make a data set's pipeline check image files and label maps as it loads them. Doing it again changes nothing.

    Args:
        dataset (Any): Of ``mmengine.dataset.BaseDataset``'s kind; others stay unchanged. Changed in place.
        checks (Collection[str]): Names of ``DATA_CHECKS`` to make. Defaults to all.
        ignored (Collection[int]): Ids of label maps that the model ignores.
    """
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(getattr(pipeline, 'transforms', None), list):
        # What distinguishes mmseg's data sets from others.
        of_mmseg = hasattr(dataset, 'reduce_zero_label') and 'label_maps' in checks
        check_pipeline(pipeline, label_check(dataset, ignored) if of_mmseg else None, 'damaged_images' in checks)


def check_pipeline(pipeline: Any,
                   labels: CheckLabelMap | None = None,
                   damage: bool = True,
                   following: Sequence[Any] = ()) -> None:
    """Make a pipeline, and those in it, check files as it loads them.

    Args:
        pipeline (Any): A ``Compose``. Changed in place.
        labels (CheckLabelMap, optional): Asked about every label map.
        damage (bool): Whether to look for damaged files. Defaults to True.
        following (Sequence[Any]): Transforms that come after the pipeline.
    """
    steps = pipeline.transforms
    if any(isinstance(step, (CheckedLoading, CheckLabelMap)) for step in steps):
        return
    pipeline.transforms = []
    for i, step in enumerate(steps):
        rest = [*steps[i + 1:], *following]
        key = file_key(step)
        if key == 'seg_map_path' and labels:
            later = [inner for each in rest for inner in flat_steps(each)]
            step = CheckedLoading(step, key, damage, partial(labels.after_loading, step, later))
        elif key and damage:
            step = CheckedLoading(step, key)
        elif labels and type(step).__name__ == 'PackSegInputs' and is_known(step):
            pipeline.transforms.append(labels)
        for inner in inner_pipelines(step):
            check_pipeline(inner, labels, damage, rest)
        pipeline.transforms.append(step)
    if labels and not following and all(is_known(step) and type(step).__name__ != 'PackSegInputs'
                                        for step in flat_steps(pipeline)):
        pipeline.transforms.append(labels)


@dataclass(eq=False, repr=False)
class CheckedLoading:
    """A loading transform that checks a local file before, and includes its path in every error.

    Attributes:
        checked_step (Callable): The transform.
        key (str): Of the path in the results.
        damage (bool): Whether to look for damage. Defaults to True.
        then (Callable, optional): Called with what was loaded.
    """

    checked_step: Callable
    key: str
    damage: bool = True
    then: Callable[[dict], None] | None = None

    def __repr__(self) -> str:
        return repr(self.checked_step)

    def __call__(self, results: dict) -> dict | None:
        step, path = self.checked_step, results.get(self.key)
        if path is None:
            return step(results)
        local = self.damage and reads_local_file(step, path)
        ignore = getattr(step, 'ignore_empty', False)
        try:
            damage = image_file_error(path, before_loading=True) if local else None
            loaded = None if damage else step(results)
        except FileNotFoundError as error:
            if ignore:
                return None
            raise FileNotFoundError(f'{self.key}: there is no file {path}. Correct data_root, data_prefix or the list '
                                    f'of the data set, or get the file: {CHECK_TOOL} says how') from error
        except Exception as error:
            raise ImageFileError(f'{self.key}: {path} {_failure(step, path, error, local)}') from error
        if damage and not ignore:
            raise ImageFileError(f'{self.key}: {path} {damage}. {_fix(path)}. {off_switch("damaged_images")}')
        if self.then is not None and loaded is not None:
            self.then(loaded)
        return loaded


def _failure(step: Any, path: str, error: Exception, local: bool) -> str:
    """Describe why a loader failed, and the fix."""
    if damage := image_file_error(path) if local else None:
        return f'{damage}. {_fix(path)}'
    failure = f'cannot be loaded by {type(step).__name__} ({type(error).__name__}: {error})'
    if type(error).__name__ == 'DecompressionBombError':
        return (f"{failure}. Set imdecode_backend='cv2' in this transform, or PIL.Image.MAX_IMAGE_PIXELS = None in a "
                'module of custom_imports')
    return f'{failure}. {_fix(path)}' if local else f'{failure}. Check backend_args={step.backend_args} and the file'


def read_image(path: str) -> np.ndarray:
    """Check and read an image (H, W, 3), uint8, BGR.

    Args:
        path (str): The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageFileError: If it is not a complete image.
    """
    from mmcv.image import imread
    damage = image_file_error(path)
    image = None if damage else imread(path)
    if image is None:
        raise ImageFileError(f'{path} {damage or "is damaged or no image"}. {_fix(path)}')
    return image


def image_file_error(path: str, before_loading: bool = False) -> str | None:
    """Return what is wrong with an image file, in words; None if nothing is seen.

    Its first and last bytes are read; only if these look wrong, all of it is decoded.

    Args:
        path (str): The file.
        before_loading (bool): Leave formats whose end is not known to the loader that follows, which may read what
            Pillow and OpenCV do not. Defaults to False.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    with open(path, 'rb') as file:
        head, size = file.read(32), os.fstat(file.fileno()).st_size
        file.seek(max(size - 12, 0))
        tail = file.read()
    if not head:
        return 'is empty'
    if head.startswith(b'version https://git-lfs'):
        return 'is a pointer of Git LFS, not the file itself (git lfs pull)'
    # By format, whether the file has its end.
    complete = {
        b'\xff\xd8': tail.endswith(b'\xff\xd9'),
        b'\x89PNG': tail.endswith(b'IEND\xaeB`\x82'),
        b'BM': int.from_bytes(head[2:6], 'little') <= size,
        b'RIFF': int.from_bytes(head[4:8], 'little') + 8 <= size
    }
    ends = next((complete[start] for start in complete if head.startswith(start)), before_loading)
    error = '' if ends else decoding_error(path, other_decoders=not before_loading)
    return f'is damaged or no image ({size} bytes; {error})' if error else None


def _describe(config: Any) -> str:
    config = next(leaf_datasets(config))
    keys = ('data_root', 'data_prefix', 'ann_file') if isinstance(config, dict) else ()
    given = [f'{key}={config[key]!r}' for key in keys if config.get(key)]
    return type_name(config) + (f' ({", ".join(given)})' if keys else '')


def _fix(path: str) -> str:
    folder = shlex.quote(os.path.dirname(path) or '.')
    return f'Get it again, or take it out of the data set; {CHECK_TOOL} images --root {folder} finds all such files'
