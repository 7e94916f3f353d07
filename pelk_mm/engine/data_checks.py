"""Names of the checks of data, and how a config switches them off: ``data_checks = dict(label_maps=False)``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.utils.data import Dataset

CHECK_TOOL = 'python tools/dataset_converters/check_dataset.py'

DATA_CHECKS = dict(
    missing_files='whether image files and label maps are there and not empty, when a run starts',
    damaged_images='whether image files end where they should, as they are loaded',
    label_maps='whether label maps fit their images and have the ids of the classes',
    annotation_files='whether there is something to learn and to measure in COCO files',
    class_count='whether num_classes of every head is that of the data',
)


class ImageFileError(ValueError):
    """An image file that is not complete, or a label map that does not fit. The message names the file and a remedy."""


def enabled_checks(cfg: Any) -> frozenset[str]:
    """Return the names of the checks that a config leaves on; by default all are.

    Args:
        cfg (Config | dict): ``cfg['data_checks']`` maps names of ``DATA_CHECKS`` to booleans, or is one for all.

    Raises:
        ValueError: If a name is unknown or a value is no boolean.
    """
    given = cfg.get('data_checks')
    given = {} if given is None else dict.fromkeys(DATA_CHECKS, given) if isinstance(given, bool) else given
    wrong = [f'{name}={value!r}' for name, value in given.items() if name not in DATA_CHECKS or type(value) is not bool]
    if wrong:
        raise ValueError(f'data_checks must map {", ".join(DATA_CHECKS)} to True or False, got {", ".join(wrong)}')
    return frozenset(name for name in DATA_CHECKS if given.get(name, True))


def off_switch(name: str) -> str:
    """Return the sentence that ends a check's message."""
    return f'If the data are meant so, switch this check off: --cfg-options data_checks.{name}=False'


def advice(dataset: Any) -> str:
    """Return the command that says how to get a data set, named by its type, an object or a config."""
    known = dict(ImageNet='imagenet', ADE20KDataset='ade20k', CocoDataset='coco')
    return f'get the data: {" ".join(filter(None, [CHECK_TOOL, known.get(type_name(dataset), "")]))} says how'


def type_name(item: Any) -> str:
    """Return the name of an object's class, or of the type of a config, a class or a string with or without scope."""
    kind = item.get('type', '') if isinstance(item, dict) else type(item)
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def leaf_datasets(dataset: Any) -> Iterator[Any]:
    """Yield the data sets that others wrap, themselves if they wrap none; objects, or the configs of a loader."""
    get = dataset.get if isinstance(dataset, dict) else partial(getattr, dataset)
    inner = [*(get('datasets', None) or ()), get('dataset', None)]
    wrapped = [child for child in inner if isinstance(child, (Dataset, dict))]
    for child in wrapped:
        yield from leaf_datasets(child)
    if not wrapped:
        yield dataset
