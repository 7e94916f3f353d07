"""Report that a resumed training is already finished."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from pelk_mm.registry import HOOKS

from ..loops import ResumableEpochBasedTrainLoop


@HOOKS.register_module()
class FinishedRunHook(Hook):
    """Log that a resumed training is already finished, which MMEngine ends without a word.

    Our tools add this hook to every training.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare where the checkpoint was saved with where training ends."""
        loop = runner.train_loop
        unit = 'epoch' if isinstance(loop, EpochBasedTrainLoop) else 'iter'
        done, last = getattr(runner, unit), getattr(loop, f'max_{unit}s', None)
        finished = last is not None and done >= last
        if isinstance(loop, ResumableEpochBasedTrainLoop):
            # Saved after the last iteration, before the last epoch counted as done.
            finished |= runner.iter == loop.max_iters
        if runner._resume and finished:
            runner.logger.info(
                f'This training is finished: {runner._load_from} was saved after iteration {runner.iter}, and '
                f'train_cfg.max_{unit}s is {last}. Nothing is left to train. Test the checkpoint with tools/test.py, '
                f'or raise train_cfg.max_{unit}s')
