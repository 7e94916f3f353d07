"""MMEngine's runners with our hooks, and with checks of annotation files, image files and label maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from torch.utils.data import DataLoader

from pelk_mm.registry import RUNNERS

from .annotation_files import check_annotation_files
from .data_checks import enabled_checks
from .feature_misfits import explaining_misfits
from .hooks import (
    CheckFiniteHook,
    ClassCountHook,
    FinishedRunHook,
    KeepPreviousRunHook,
    LoadWeightsHook,
    PreemptionHook,
)
from .image_files import build_checked_dataloader
from .processes import nested_dicts
from .sharding import FSDP_STRATEGIES

# What our runners add to default_hooks, by the name under which a config changes it or, with None, leaves it out.
OWN_HOOKS: dict[str, type[Hook]] = dict(
    class_count=ClassCountHook,
    check_finite=CheckFiniteHook,
    finished_run=FinishedRunHook,
    load_weights=LoadWeightsHook,
    preemption=PreemptionHook,
    previous_run=KeepPreviousRunHook)


def add_own_hooks(cfg: Config) -> None:
    """Name ``OWN_HOOKS`` in ``default_hooks``, and our variants of MMEngine's checkpoint hook and FSDP strategy.

    Args:
        cfg (Config): Changed in place. Hooks of another type than MMEngine's stay, and so do those that the config
            leaves out with None; what ``custom_hooks`` has is not added again.

    Raises:
        ValueError: If ``data_checks`` is wrong.
    """
    if cfg.get('strategy', {}).get('type') in FSDP_STRATEGIES:
        cfg.strategy = dict(cfg.strategy, type='pelk_mm.ResumableFSDPStrategy')
    hooks = dict(cfg.get('default_hooks') or {})
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if checkpoint is not None and checkpoint.get('type', 'CheckpointHook') in ('CheckpointHook',
                                                                              'mmengine.CheckpointHook'):
        hooks['checkpoint'] = dict(checkpoint, type='pelk_mm.AtomicCheckpointHook')
    arguments = dict(previous_run=dict(action=cfg.get('previous_run', 'move')))
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        kinds = [hook.get('type') if isinstance(hook, dict) else type(hook) for hook in cfg.get('custom_hooks') or ()]
        kinds = [registry.get(kind) if isinstance(kind, str) else kind for kind in kinds]
    for name, own in OWN_HOOKS.items():
        given = hooks.pop(name, {})
        is_off = given is None or name == 'class_count' and name not in enabled_checks(cfg)
        if not is_off and not any(isinstance(kind, type) and issubclass(kind, own) for kind in kinds):
            default = dict(arguments.get(name, {}), type=f'pelk_mm.{own.__name__}')
            hooks[name] = {**default, **given} if isinstance(given, dict) else given
    cfg.default_hooks = hooks


class _ChecksData:
    """The checks of both runners, as MMEngine calls no hook before data sets are built and workers started."""

    cfg: Any

    @classmethod
    def from_cfg(cls, cfg: Config) -> Any:
        """Build a runner, with our hooks in its config."""
        cfg = cfg.copy()
        add_own_hooks(cfg)
        return super().from_cfg(cfg)  # type: ignore[misc]

    def build_dataloader(self, dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a loader; look for the files of its data, and have them checked as they load."""
        nodes = nested_dicts(self.cfg.get('model'))
        # The default of mmseg's heads is 255.
        ignored = {node['ignore_index'] for node in nodes if isinstance(node.get('ignore_index'), int)} or {255}
        build = super().build_dataloader  # type: ignore[misc]
        return build_checked_dataloader(build, dataloader, enabled_checks(self.cfg), ignored, *args, **kwargs)

    def train(self):
        """Check annotation files, and train."""
        return self._checked(super().train, 'train', 'val')  # type: ignore[misc]

    def val(self):
        """Check annotation files, and validate."""
        return self._checked(super().val, 'val')  # type: ignore[misc]

    def test(self):
        """Check annotation files, and test."""
        return self._checked(super().test, 'test')  # type: ignore[misc]

    def _checked(self, run: Callable[[], Any], *modes: str) -> Any:
        if is_main_process() and 'annotation_files' in enabled_checks(self.cfg):
            check_annotation_files(self.cfg, modes)
        with explaining_misfits(partial(getattr, self, 'model', None)):
            return run()


@RUNNERS.register_module()
class CheckedRunner(_ChecksData, Runner):
    """MMEngine's ``Runner`` that checks data before work starts and as they load, and adds hooks to ``default_hooks``.

    The base configs name it, so that upstream's tools use it, too; our tools take it where a config says ``Runner`` or
    nothing. ``data_checks`` of the config switches checks off by name, see :mod:`pelk_mm.engine.data_checks`. Its hooks
    are ``class_count``, ``check_finite``, ``finished_run``, ``load_weights``, ``preemption`` and ``previous_run``.

    Examples:
        >>> runner_type = 'pelk_mm.CheckedRunner'
        >>> data_checks = dict(label_maps=False)
        >>> default_hooks = dict(preemption=None, check_finite=dict(interval=10))
    """


@RUNNERS.register_module()
class CheckedFlexibleRunner(_ChecksData, FlexibleRunner):
    """The same for ``FlexibleRunner``."""


# MMEngine's runners -> ours.
OWN_RUNNERS = dict(Runner='pelk_mm.CheckedRunner', FlexibleRunner='pelk_mm.CheckedFlexibleRunner')


def use_own_runner(cfg: Config) -> None:
    """Name our runner in a config that says MMEngine's or nothing, and our hooks where it has a runner of its own.

    Args:
        cfg (Config): Changed in place.
    """
    kind = cfg.get('runner_type', 'Runner')
    cfg.runner_type = OWN_RUNNERS.get(kind, kind)
    if not issubclass(RUNNERS.get(cfg.runner_type) or object, _ChecksData):
        add_own_hooks(cfg)
