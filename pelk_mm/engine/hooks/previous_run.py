"""Keep a new training from overwriting the checkpoints of an earlier one."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from pelk_mm.registry import HOOKS

from ...checkpoints.atomic import free_name

ACTIONS = ('move', 'overwrite', 'stop')


@HOOKS.register_module()
class KeepPreviousRunHook(Hook):
    """Handle checkpoints that a new training finds in its work directory.

    Our tools add this hook to every training that is not resumed, with ``previous_run`` of the config as ``action``.

    Args:
        action (str): ``'move'`` them to a sub-folder ``previous_<number>``, ``'overwrite'`` those of the same name, or
            ``'stop'`` with an error. Defaults to ``'move'``.

    Raises:
        ValueError: If ``action`` is another word.
    """

    def __init__(self, action: str = 'move') -> None:
        if action not in ACTIONS:
            raise ValueError(f'previous_run must be one of {", ".join(ACTIONS)}, got {action!r}')
        self.action = action

    def before_run(self, runner: Runner) -> None:
        """Handle them after the data are built and before weights are loaded.

        Raises:
            FileExistsError: If there are checkpoints and ``action`` is ``'stop'``.
            ValueError: If the training starts from one of them.
        """
        files = sorted(Path(runner.work_dir).glob('*.pth'))
        training = isinstance(runner._train_loop, BaseLoop) and not runner._resume and not runner.cfg.get('resume')
        if not files or not training or self.action == 'overwrite':
            return
        if self.action == 'stop':
            raise FileExistsError(f'{runner.work_dir} holds {len(files)} checkpoints of an earlier run: choose another '
                                  '--work-dir, go on with --resume, or set previous_run to move or overwrite')
        source = runner._load_from
        if source and Path(source).resolve() in [file.resolve() for file in files]:
            raise ValueError(f'load_from ({source}) is in the work directory, where a new run would overwrite it: '
                             'choose another --work-dir, or go on with --resume')
        if is_main_process():
            self._move(runner, files)

    def _move(self, runner: Runner, files: list[Path]) -> None:
        work_dir = Path(runner.work_dir)
        target = Path(free_name(f'{work_dir}/previous_'))
        target.mkdir()
        for file in [*files, *work_dir.glob('last_checkpoint')]:
            file.rename(target / file.name)
        runner.logger.info(
            f'{work_dir} held {len(files)} checkpoints of an earlier run, now in {target}. To go on with that run, '
            'move them back and use --resume. To prevent this, choose another --work-dir, or --cfg-options '
            'previous_run=stop (an error instead) or previous_run=overwrite')
