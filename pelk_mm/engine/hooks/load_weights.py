"""The choice between raw and averaged weights of a checkpoint."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from pelk_mm.registry import HOOKS

from ...checkpoints.entries import check_choice, find_weights


@HOOKS.register_module()
class LoadWeightsHook(Hook):
    """Choose the weights that ``load_from`` loads from a checkpoint of training with EMA, which holds two sets.

    Resumed training needs both, and gets both. All other loading takes one set, and MMEngine's EMAHook, if there is
    one, starts its average from it; heads whose shapes differ are left out, as without EMA. Our tools add this hook to
    every training.

    Args:
        weights (str, optional): ``'raw'``, as the optimiser left them, or ``'averaged'``, by EMAHook. None takes what
            MMEngine takes, the ``state_dict``: the averaged ones where there are two sets. Defaults to None.
        mode (str): ``'train'`` or ``'test'``: which of the runner's methods the choice is for. Defaults to 'train'.

    Raises:
        ValueError: If an argument has another value; when loading, if the checkpoint lacks the weights that are asked
            for.

    Examples:
        >>> # Fine-tuning from the weights that SLaK's and ConvNeXt's recipes start from
        >>> custom_hooks = [dict(type='pelk_mm.LoadWeightsHook', weights='raw')]
    """

    # Before EMAHook, which takes both.
    priority = 'VERY_HIGH'

    def __init__(self, weights: str | None = None, mode: str = 'train') -> None:
        check_choice(weights)
        if mode not in ('train', 'test'):
            raise ValueError(f"mode must be 'train' or 'test', got {mode!r}")
        self.weights = weights
        self.mode = mode

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leave one set in the checkpoint, as its ``state_dict``."""
        # MMEngine builds the training loop of a config only to train.
        training = isinstance(runner._train_loop, BaseLoop)
        if runner._resume or training != (self.mode == 'train'):
            return
        if self.weights is not None:
            checkpoint['state_dict'], entry = find_weights(checkpoint, self.weights, str(runner._load_from))
            runner.logger.info(f'{self.weights.capitalize()} weights are loaded, from {entry} of {runner._load_from}')
        checkpoint.pop('ema_state_dict', None)
