"""Save checkpoints without removing the previous one first."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import put
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from pelk_mm.registry import HOOKS

from .atomic import set_aside
from .loading import checkpoint_error


# The second name is that of 0.1.0.
@HOOKS.register_module(name=['AtomicCheckpointHook', 'WholeCheckpointHook'])
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, except that a checkpoint is removed only when its replacement is on the disk.

    MMEngine removes a checkpoint that is outdated, and the best one so far, before it writes the new one: a process
    that is killed meanwhile, or a disk that is full, can leave none. It rewrites ``last_checkpoint`` in place. Here the
    new file comes first, ``last_checkpoint`` names it next, and then the outdated one goes, so that the disk holds one
    checkpoint more than ``max_keep_ckpts`` for a moment. A damaged file of the same name is not overwritten but renamed
    to ``<name>.damaged_<number>``. Our tools use this hook wherever a config says ``CheckpointHook``.

    Arguments are those of ``CheckpointHook``.

    Examples:
        >>> default_hooks = dict(checkpoint=dict(type='pelk_mm.AtomicCheckpointHook', interval=1, max_keep_ckpts=3))
    """

    last_ckpt: str | None
    file_backend: Any

    def _save_checkpoint_with_step(self, runner: Runner, step: int | str, meta: dict) -> None:
        outdated = self._keep(runner, step)
        path = self.path_of(step)
        if is_main_process() and path != self.last_ckpt and osp.isfile(path):
            damage = checkpoint_error(path)
            if damage is not None:
                runner.logger.warning(f'{path} is damaged, {damage}: it is now {set_aside(path, ".damaged_")}, as the '
                                      'checkpoint of that name is about to be written')
        self.last_ckpt = path
        runner.message_hub.update_info('last_ckpt', path)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if is_main_process():
            put(path.encode(), osp.join(runner.work_dir, 'last_checkpoint'))
            for old in outdated:
                self._remove(self.path_of(old))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        backend, later = self.file_backend, _RemovesLater(self.file_backend)
        self.file_backend = later
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in later.paths:
            if path not in best:
                self._remove(path)

    def path_of(self, step: int | str) -> str:
        """Return the checkpoint of an epoch or iteration."""
        return str(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step)))

    def _keep(self, runner: Runner, step: int | str) -> list[int | str]:
        """Add a step to those that are kept, and return those that no longer are."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        outdated = [self.keep_ckpt_ids.popleft()] if len(self.keep_ckpt_ids) == self.max_keep_ckpts else []
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return outdated

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            # DeepSpeed's checkpoints are folders.
            self.file_backend.rmtree(path)


class _RemovesLater:
    """A file backend that only records the paths to remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove
