"""Images as a model's test pipeline prepares them, from its test dataset or from any folder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    return [
        copy.deepcopy(transform) for transform in dataset['pipeline']
        if not transform['type'].rpartition('.')[2].startswith('Load') or 'Image' in transform['type']
    ]


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
        with DefaultScope.overwrite_default_scope(self.scope):
            if folder is None:
                dataset = DATASETS.build(cfg.test_dataloader.dataset)
                check_when_loading(dataset)
                step = max(len(dataset) / count, 1)
                self._items: list[Any] = [int(i * step) for i in range(min(count, len(dataset)))]
                self._get = dataset.__getitem__
                self._path = lambda index: dataset.get_data_info(index)['img_path']
            else:
                pipeline = Compose([TRANSFORMS.build(transform) for transform in test_pipeline(cfg)])
                check_pipeline(pipeline)
                self._items = list_images(folder)[:count]
                self._get = lambda file: pipeline(dict(img_path=str(file), img_id=0))
                self._path = str

    def __len__(self) -> int:
        return len(self._items)

    def batches(self) -> Iterator[dict]:
        """One image each, as data preprocessors take it."""
        for item in self._items:
            with DefaultScope.overwrite_default_scope(self.scope):
                batch = pseudo_collate([self._get(item)])
            yield batch

    def arrays(self) -> Iterator[Any]:
        """The pictures as the files hold them: (H, W, 3) uint8, BGR."""
        for item in self._items:
            yield read_image(self._path(item))
