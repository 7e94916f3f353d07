"""Images as a model's test pipeline prepares them, from its test dataset or from any folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from ..engine.image_files import check_pipeline, check_when_loading, read_image
from ..image_names import IMAGE_SUFFIXES, list_image_files


def test_pipeline(cfg: Config) -> list[dict]:
    """The transforms that the config tests with, without those that load annotations.

    Raises:
        ValueError: If the config has no pipeline for testing.
    """
    dataset: dict = cfg.get('test_dataloader', {}).get('dataset', {})
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    if 'pipeline' not in dataset:
        raise ValueError('cfg must have test_dataloader.dataset.pipeline')
    # Whichever comes first is that of the image.
    loader, rest = split_loader(dataset['pipeline'])
    kept = [transform for transform in rest if not _loads(transform) or 'Image' in _name(transform)]
    return copy.deepcopy([*([loader] if loader else ()), *kept])


def split_loader(pipeline: Sequence[dict]) -> tuple[dict | None, list[dict]]:
    """Return the transform of a pipeline that loads the image, the first that loads, and the others."""
    loader = next(filter(_loads, pipeline), None)
    return loader, [transform for transform in pipeline if transform is not loader]


def _loads(transform: dict) -> bool:
    return _name(transform).startswith('Load')


def _name(transform: dict) -> str:
    # A class in MMEngine's newer configs.
    kind = transform['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def reads_plain_files(loader: dict | None) -> bool:
    """Whether a transform loads images of the usual formats by the usual decoder, so that files can be checked."""
    return loader is None or (_name(loader) == 'LoadImageFromFile' and not loader.get('imdecode_backend'))


def image_loader(cfg: Config, check: bool = True) -> Callable[[str | Path], np.ndarray]:
    """Return a function that loads an image (H, W, C) or (H, W) as the config's test pipeline does.

    Args:
        cfg (Config): A config with ``test_dataloader``.
        check (bool): Check every file before, and name it in errors. Defaults to True.

    Raises:
        ValueError: If the config has no pipeline for testing.
    """
    loader, _ = split_loader(test_pipeline(cfg))
    if loader is None:
        return lambda path: read_image(str(path), check)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        pipeline = Compose([TRANSFORMS.build(loader)])
    if check:
        check_pipeline(pipeline)
    return lambda path: pipeline(dict(img_path=str(path), img_id=0))['img']


def list_images(folder: str | Path) -> list[Path]:
    """Image files of a folder, sorted by name.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'folder of images: no such folder, {folder}')
    files = list_image_files(folder)
    if not files:
        raise FileNotFoundError(f'folder of images: {folder} has none of {", ".join(IMAGE_SUFFIXES)}')
    return files


class TestImages:
    """Images of the config's test dataset, evenly spaced over it, or of a folder.

    Args:
        cfg (Config): A config with ``test_dataloader``.
        count (int): How many, at most.
        folder (str, optional): Folder to take them from instead of the dataset.

    Raises:
        FileNotFoundError: If the dataset's files, or images in the folder, are missing.
        ValueError: If ``count`` is below 1 or the config has no pipeline for testing.
    """

    # pytest would take it for a test.
    __test__ = False

    def __init__(self, cfg: Config, count: int, folder: str | None = None) -> None:
        if count < 1:
            raise ValueError(f'count must be at least 1, got {count}')
        self.scope = cfg.get('default_scope')
        loader, _ = split_loader(test_pipeline(cfg))
        with DefaultScope.overwrite_default_scope(self.scope):
            self._load = Compose([TRANSFORMS.build(loader or dict(type='mmcv.LoadImageFromFile'))])
            check_pipeline(self._load)
            if folder is None:
                dataset = DATASETS.build(cfg.test_dataloader.dataset)
                check_when_loading(dataset)
                step = max(len(dataset) / count, 1)
                self._items: list[Any] = [int(i * step) for i in range(min(count, len(dataset)))]
                self._get = dataset.__getitem__
                self._info = dataset.get_data_info
            else:
                pipeline = Compose([TRANSFORMS.build(transform) for transform in test_pipeline(cfg)])
                check_pipeline(pipeline)
                self._items = list_images(folder)[:count]
                self._get = lambda file: pipeline(dict(img_path=str(file), img_id=0))
                self._info = lambda file: dict(img_path=str(file), img_id=0)

    def __len__(self) -> int:
        return len(self._items)

    def batches(self) -> Iterator[dict]:
        """One image each, as data preprocessors take it."""
        for item in self._items:
            with DefaultScope.overwrite_default_scope(self.scope):
                batch = pseudo_collate([self._get(item)])
            yield batch

    def arrays(self) -> Iterator[np.ndarray]:
        """The images (H, W, C) or (H, W) as the pipeline loads them, three channels as BGR."""
        for item in self._items:
            with DefaultScope.overwrite_default_scope(self.scope):
                loaded = self._load(self._info(item))
            yield loaded['img']
