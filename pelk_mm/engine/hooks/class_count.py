"""Heads that have another number of classes than the data are refused before work starts."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from pelk_mm.registry import HOOKS

# Their classes are others than those of the data set: weights from elsewhere, objects and background, stuff.
OTHER_CLASSES = ('backbone', 'rpn_head', 'semantic_head')


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Compares every ``num_classes`` of a config's model with the classes of the data sets that the run reads.

    For all three toolboxes, once, when the data sets are there and before weights are loaded. mmdet's own
    ``NumClassCheckHook`` looks at the start of every epoch; mmseg and mmpretrain have none, and a wrong count there is
    an index error inside the loss. Our tools add this hook to every run.

    Args:
        strict (bool): Whether a difference is an error; False makes it a warning, for data that hold only some of the
            classes of a head, say. Defaults to True.

    Raises:
        ValueError: If a count differs, or the classes of a data set are one string.

    Examples:
        >>> custom_hooks = [dict(type='pelk_mm.ClassCountHook', strict=False)]
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict

    def before_run(self, runner: Runner) -> None:
        """Compare; of the loaders, only those of this run are built."""
        counts = dict(_class_counts({key: runner.cfg.get(key) for key in ('model', 'data_preprocessor')}))
        for part in ('train', 'val', 'test'):
            # Asked for its dataloader, the runner would build the loop.
            loop, name = getattr(runner, f'_{part}_loop', None), f'{part}_dataloader'
            if not isinstance(loop, BaseLoop):
                continue
            loader = loop.dataloader
            classes = (getattr(loader.dataset, 'metainfo', None) or {}).get('classes')
            if classes is None:
                continue
            if isinstance(classes, str):
                raise ValueError(f'{name}.dataset.metainfo.classes must be a tuple of names, got the string '
                                 f'{classes!r}: for a single class write ({classes!r}, )')
            wrong = {key: count for key, count in counts.items() if count != len(classes)}
            if wrong:
                self._report(runner, name, loader.dataset, list(classes), wrong)

    def _report(self, runner: Runner, name: str, dataset, classes: list[str], wrong: dict[str, int]) -> None:
        listed = ', '.join(map(str, classes[:3])) + (', ...' if len(classes) > 3 else '')
        heads = ', '.join(f'{key} = {count}' for key, count in wrong.items())
        cure = ' '.join(f'{key}={len(classes)}' for key in wrong)
        message = (f'{name} has {len(classes)} classes ({listed}; {_origin(dataset)}), but {heads} in '
                   f'{runner.cfg.filename or "the config"}. Give the model the classes of the data, --cfg-options '
                   f'{cure}, or correct the data: metainfo.classes of the data set, or its class folders')
        if self.strict:
            raise ValueError(f"{message}. If it is meant, add dict(type='pelk_mm.ClassCountHook', strict=False) to "
                             'custom_hooks')
        runner.logger.warning(message)


def _class_counts(node, path: str = '') -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` of a nested config with its dotted key."""
    if isinstance(node, dict):
        if isinstance(node.get('num_classes'), int):
            yield f'{path}.num_classes', node['num_classes']
        items = [(key, value) for key, value in node.items() if key not in OTHER_CLASSES]
    elif isinstance(node, (list, tuple)):
        items = list(enumerate(node))
    else:
        return
    for key, value in items:
        yield from _class_counts(value, f'{path}.{key}' if path else str(key))


def _origin(dataset) -> str:
    """Type and files of a data set, or of the first of those that it wraps."""
    while hasattr(dataset, 'datasets') or hasattr(dataset, 'dataset'):
        dataset = dataset.datasets[0] if hasattr(dataset, 'datasets') else dataset.dataset
    prefix = getattr(dataset, 'data_prefix', None) or {}
    source = getattr(dataset, 'ann_file', '') or next(iter(prefix.values()), '') or getattr(dataset, 'data_root', '')
    return f'{type(dataset).__name__} {source}'.strip()
