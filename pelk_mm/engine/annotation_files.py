"""Check COCO files before work starts; errors otherwise surface inside workers, after an epoch, or not at all.

A file is read as the data set or the metric reads it, by MMEngine's file client; what that cannot read is left to them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine import fileio
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from mmengine.utils import is_abs

from .coco_file import CocoFile
from .data_checks import CHECK_TOOL, leaf_datasets, type_name
from .loaders import is_local
from .nodes import metrics_of

# The methods that read COCO files in mmdet, by class; a class with others of its own is not checked.
READING = dict(CocoDataset=('load_data_list', 'parse_data_info'), CocoMetric=('compute_metrics', 'process'))


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
        files: dict[str, Any] = {}
        reasons = []
        for dataset in of_coco:
            path, root = dataset.get('ann_file') or '', dataset.get('data_root')
            path = path if is_abs(path) or not root else os.path.join(root, path)
            key = f'{mode}_dataloader.dataset.ann_file'
            content = _read(path, key, dataset.get('backend_args'), files)
            if content is not None:
                steps = [step for step in dataset.get('pipeline') or () if type_name(step) == 'LoadAnnotations']
                with_mask = any(step.get('with_mask') for step in steps)
                # Others of the loader may have what one lacks.
                may_be_empty = mode == 'test' or len(leaves) > 1
                file = CocoFile(content, f'{key}: {path}', _classes(dataset, scope), may_be_empty)
                file.check_classes()
                reasons.append(file.why_nothing_to_learn(with_mask))
        if mode != 'test' and leaves and len(reasons) == len(leaves) and all(reasons):
            raise ValueError(reasons[0])
        for metric in metrics_of(cfg.get(f'{mode}_evaluator')) if of_coco else ():
            path, key = metric.get('ann_file'), f'{mode}_evaluator.ann_file'
            if not path or metric.get('format_only') or not _reads_as(metric, 'CocoMetric', METRICS, scope):
                continue
            content = _read(path, key, metric.get('backend_args'), files)
            if content is not None:
                kinds = metric.get('metric', 'bbox')
                file = CocoFile(content, f'{key}: {path}', _classes(of_coco[0], scope), mode == 'test')
                reason = file.why_nothing_to_measure('segm' in ([kinds] if isinstance(kinds, str) else kinds))
                if reason and (mode != 'test' or file.annotations):
                    raise ValueError(reason)


def check_coco_file(path: str,
                    classes: Iterable[str] = (),
                    with_mask: bool = False,
                    may_be_empty: bool = False,
                    key: str = 'ann_file') -> None:
    """Check a file of COCO's format.

    Args:
        path (str): The file.
        classes (Iterable[str]): Names that its categories must contain. Defaults to ().
        with_mask (bool): Whether every annotation in use needs a ``segmentation``. Defaults to False.
        may_be_empty (bool): Whether it may hold nothing to learn. Defaults to False.
        key (str): The config key that names the file, for the messages. Defaults to 'ann_file'.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is not what is asked for.
    """
    file = CocoFile(_read(path, key, None, {}), f'{key}: {path}', list(classes), may_be_empty)
    file.check_classes()
    reason = file.why_nothing_to_learn(with_mask)
    if reason and not may_be_empty:
        raise ValueError(reason)


def _read(path: str, key: str, backend_args: dict | None, files: dict[str, Any]) -> Any:
    """Parse a file, once for the same path; None for one behind a file client that does not give it."""
    if path in files:
        return files[path]
    if is_local(path, backend_args):
        if not os.path.isfile(path):
            raise FileNotFoundError(f'{key}: there is no annotation file {path}. Correct {key} or data_root, or get '
                                    f'the data: {CHECK_TOOL} coco says how')
        text = fileio.get(path, backend_args)
    else:
        try:
            text = fileio.get(path, backend_args)
        # Clients raise nearly anything; the data set will, too.
        except Exception:
            return None
    try:
        files[path] = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f'is damaged ({len(text)} bytes; {error})' if len(text) else 'is empty'
        raise ValueError(f'{key}: {path} {what}: unpack or make it again') from None
    return files[path]


def _reads_as(node: Mapping, name: str, registry: Any, scope: str | None) -> bool:
    """Whether a config's class is mmdet's of this name, or inherits how that reads its files."""
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
    """The classes in use: of the config, else of the type; an empty list where a file lists them."""
    own = dataset.get('metainfo') or {}
    classes = own.get('classes') if isinstance(own, Mapping) else own
    if classes is None:
        classes = getattr(_class(dataset, DATASETS, scope), 'METAINFO', {}).get('classes')
    return list(classes) if isinstance(classes, (list, tuple)) else []
