"""Resuming a training that has come to its end."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from pelk_mm.registry import HOOKS


@HOOKS.register_module()
class FinishedRunHook(Hook):
    """Log that a resumed training is already finished, which MMEngine ends without a word.

    Our tools add this hook to every training.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare where the checkpoint was saved with where training ends."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        unit, name = ('epoch', 'max_epochs') if by_epoch else ('iteration', 'max_iters')
        done, last = runner.epoch if by_epoch else runner.iter, getattr(runner.train_loop, name, None)
        if runner._resume and last is not None and done >= last:
            runner.logger.info(
                f'This training is finished: {runner._load_from} was saved after {unit} {done}, and train_cfg.{name} '
                f'is {last}. Nothing is left to train. Test the checkpoint with tools/test.py, or raise '
                f'train_cfg.{name}')
