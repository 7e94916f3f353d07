"""Check that each head's num_classes matches the dataset."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from pelk_mm.registry import HOOKS

from ..data_checks import leaf_datasets, off_switch, type_name
from ..processes import nested_dicts

# Their classes are others than those of the data set: weights from elsewhere, objects and background, stuff.
OTHER_CLASSES = ('backbone', 'rpn_head', 'semantic_head')
# The same by type: edges or not.
OTHER_HEADS = ('STDCHead', )
# A model that has one of these compares with texts; num_classes is then a cap, as GroundingDINO's 256, or not used.
TEXT_PARTS = ('language_model', 'text_encoder', 'text_model', 'text_backbone', 'text_prototype', 'contrastive_cfg')
# The toolboxes' own hooks for this, which configs name in custom_hooks.
UPSTREAM_HOOKS = ('ClassNumCheckHook', 'NumClassCheckHook')


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Check that each head's ``num_classes`` matches the dataset, for each dataset that the run reads.

    For all three toolboxes, once, when the data sets are there and before weights are loaded; without it a wrong count
    is an index error inside the loss. Where the config has the toolbox's own hook, mmpretrain's ``ClassNumCheckHook``
    or mmdet's ``NumClassCheckHook``, the check is left to that. Models that compare images with texts are not checked.
    ``CheckedRunner`` adds this hook to every run as ``default_hooks.class_count``; ``data_checks.class_count=False``
    switches it off.

    Args:
        strict (bool): Whether a difference is an error; False makes it a warning, for data that hold only some of the
            classes of a head, say. Defaults to True.

    Raises:
        ValueError: If a count differs, or the classes of a data set are one string.

    Examples:
        >>> default_hooks = dict(class_count=dict(strict=False))
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict

    def before_run(self, runner: Runner) -> None:
        """Compare; of the loaders, only those of this run are built."""
        model = {key: runner.cfg.get(key) for key in ('model', 'data_preprocessor')}
        counts = dict(class_counts(model))
        compares_texts = any(node.get(part) for node in nested_dicts(model) for part in TEXT_PARTS)
        if compares_texts or any(type(hook).__name__ in UPSTREAM_HOOKS for hook in runner.hooks):
            return
        for part in ('train', 'val', 'test'):
            # Asked for its dataloader, the runner would build the loop.
            loop, name = getattr(runner, f'_{part}_loop', None), f'{part}_dataloader'
            dataset = loop.dataloader.dataset if isinstance(loop, BaseLoop) else None
            metainfo = getattr(dataset, 'metainfo', None) or {}
            classes = metainfo.get('classes')
            if classes is None:
                continue
            if isinstance(classes, str):
                raise ValueError(f'{name}.dataset.metainfo.classes must be a tuple of names, got the string '
                                 f'{classes!r}: for a single class write ({classes!r}, )')
            # Heads of panoptic models are for things or stuff only.
            right = {len(metainfo[key]) for key in ('classes', 'thing_classes', 'stuff_classes') if metainfo.get(key)}
            wrong = {key: count for key, count in counts.items() if count not in right}
            if wrong:
                self._report(runner, name, dataset, list(classes), wrong)

    def _report(self, runner: Runner, name: str, dataset, classes: list[str], wrong: dict[str, int]) -> None:
        leaf = next(leaf_datasets(dataset))
        prefix = getattr(leaf, 'data_prefix', None) or {}
        source = getattr(leaf, 'ann_file', '') or next(iter(prefix.values()), '') or getattr(leaf, 'data_root', '')
        listed = ', '.join(map(str, classes[:3])) + (', ...' if len(classes) > 3 else '')
        heads = ', '.join(f'{key} = {count}' for key, count in wrong.items())
        options = ' '.join(f'{key}={len(classes)}' for key in wrong)
        message = (f'{name} has {len(classes)} classes ({listed}; {f"{type(leaf).__name__} {source}".strip()}), but '
                   f'{heads} in {runner.cfg.filename or "the config"}. Give the model the classes of the data, '
                   f'--cfg-options {options}, or correct the data: metainfo.classes of the data set, or its class '
                   'folders')
        if self.strict:
            raise ValueError(f'{message}. If it is meant, set default_hooks.class_count.strict=False. '
                             f'{off_switch("class_count")}')
        runner.logger.warning(message)


def class_counts(node, path: str = '') -> Iterator[tuple[str, int]]:
    """Yield the dotted key and value of each ``num_classes`` of a nested config."""
    if isinstance(node, dict):
        if type_name(node) in OTHER_HEADS:
            return
        if isinstance(node.get('num_classes'), int):
            yield f'{path}.num_classes', node['num_classes']
    items = node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, (list, tuple)) else ())
    for key, value in items:
        if key not in OTHER_CLASSES:
            yield from class_counts(value, f'{path}.{key}' if path else str(key))
