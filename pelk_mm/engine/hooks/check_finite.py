"""Training stops when a loss or a gradient turns non-finite, and says in which layer it did."""

from __future__ import annotations

import math
from typing import cast

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pelk_mm.registry import HOOKS

from ..finiteness import all_finite, image_paths, listed, non_finite_names, non_finite_samples, trace
from ..seeding import get_rng_state, set_rng_state


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Stops a run whose loss or gradient is NaN or infinite, and names losses, layer, parameters and images.

    The losses are looked at after every iteration, the gradients before the optimiser's step, so that the weights are
    still good ones. Only when something is found, the forward and the backward pass of that iteration are repeated,
    with the same random numbers, and every tensor between the modules is looked at. All processes of a distributed run
    do so together and stop with the same message. The saved checkpoints are those of before.

    A step that AMP's loss scaler skips does not stop the run: an overflow tells it to scale less. A run that skips one
    step after the other is stopped, though. With gradient accumulation, gradients are looked at when they are used.

    mmdet's ``CheckInvalidLossHook`` looks at the sum of the losses alone, every 50 iterations; MMEngine's
    ``detect_anomalous_params`` looks for parameters that have no gradient. Our tools add this hook to every training.

    Args:
        interval (int): Optimiser steps between two looks at the gradients. A look reads every gradient once and, on a
            GPU, waits for it. Defaults to 1.
        max_skipped_steps (int): So many steps that the loss scaler skips without one in between stop the run. By then
            a scale of 65536, the first, has become 2**-8. Defaults to 24.

    Raises:
        ValueError: If an argument is not positive.
        FloatingPointError: From a hook's method, when something is found.

    Examples:
        >>> custom_hooks = [dict(type='pelk_mm.CheckFiniteHook', interval=10)]
    """

    # Before anything is logged, averaged or saved.
    priority = 'VERY_HIGH'

    def __init__(self, interval: int = 1, max_skipped_steps: int = 24) -> None:
        for name, value in (('interval', interval), ('max_skipped_steps', max_skipped_steps)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} must be a positive int, got {value!r}')
        self.interval = interval
        self.max_skipped_steps = max_skipped_steps
        self._steps = 0
        self._skipped = 0
        self._stepped = False

    def before_train(self, runner: Runner) -> None:
        """Follow the steps of the optimisers."""
        wrappers = runner.optim_wrapper
        wrappers = list(wrappers.values()) if isinstance(wrappers, OptimWrapperDict) else [wrappers]
        optimizers = [wrapper.optimizer for wrapper in wrappers]
        self._handles = [
            # An optimiser that is none of PyTorch's, as DeepSpeed's: the losses alone are looked at.
            optimizer.register_step_pre_hook(lambda *_: self._before_step(runner)) for optimizer in optimizers
            if isinstance(optimizer, torch.optim.Optimizer)
        ]

    def after_train(self, runner: Runner) -> None:
        """Let the optimisers go."""
        for handle in self._handles:
            handle.remove()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Remember what it takes to repeat the iteration."""
        self._batch = data_batch
        self._rng_state = get_rng_state()
        self._stepped = False

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Look at the losses, and count the steps that were skipped."""
        losses = {key: torch.as_tensor(value).detach() for key, value in (outputs or {}).items() if 'loss' in key}
        names = [key for key, value in losses.items() if not math.isfinite(value)]
        if _anywhere(bool(names)):
            self._stop(runner, 'a loss is not finite', [f'logged: {listed(names)}'] if names else [])
        wrapper = runner.optim_wrapper
        if not hasattr(wrapper, 'loss_scaler') or not isinstance(wrapper, OptimWrapper) or not wrapper.should_update():
            return
        self._skipped = 0 if self._stepped else self._skipped + 1
        if self._skipped == self.max_skipped_steps:
            self._stop(
                runner, f'the gradients of {self._skipped} steps in a row are not finite, down to a loss scale of '
                f'{wrapper.loss_scaler.get_scale():g}', [])

    def _before_step(self, runner: Runner) -> None:
        self._stepped = True
        self._steps += 1
        if self._steps % self.interval:
            return
        gradients = {name: parameter.grad for name, parameter in _unwrap(runner.model).named_parameters()}
        good = all_finite(gradient for gradient in gradients.values() if gradient is not None)
        if _anywhere(not good):
            names = non_finite_names(gradients)
            found = f'gradients: {len(names)} of {len(gradients)} parameters, {listed(names)}'
            self._stop(runner, 'a gradient is not finite', [found] if names else [])

    def _stop(self, runner: Runner, what: str, found: list[str]) -> None:
        """Repeat the iteration, in every process, and raise."""
        reports = dist.all_gather_object([*self._explain(runner), *found])
        lines = [f'Training stopped in iteration {runner.iter + 1} (epoch {runner.epoch + 1}): {what}.']
        for rank, report in enumerate(reports):
            lines += [f'Process {rank}:'] if len(reports) > 1 else []
            lines += [f'  {line}' for line in report]
        lines.append('Usual causes: a learning rate too high for the batch size (--auto-scale-lr), no warm-up, no '
                     'optim_wrapper.clip_grad; fp16 where bf16 is needed; broken images or labels. The checkpoints in '
                     f'{runner.work_dir} are from before this iteration.')
        raise FloatingPointError('\n'.join(lines))

    def _explain(self, runner: Runner) -> list[str]:
        """What the batch, the weights and a second run of the iteration tell, in this process."""
        model, wrapper = _unwrap(runner.model), runner.optim_wrapper
        # A sharded model only runs inside its wrapper; that of other models would average over the processes.
        wrapped = runner.model if isinstance(runner.model, FullyShardedDataParallel) else model
        paths = image_paths(self._batch)
        weights = non_finite_names(dict(model.named_parameters()))

        def compute_losses() -> dict[str, Tensor]:
            set_rng_state(self._rng_state)
            with wrapper.optim_context(wrapped):
                data = model.data_preprocessor(self._batch, True)
                return wrapped(**data, mode='loss') if isinstance(data, dict) else wrapped(*data, mode='loss')

        def sum_losses(losses) -> Tensor:
            loss = model.parse_losses(losses)[0]
            return wrapper.loss_scaler.scale(loss) if hasattr(wrapper, 'loss_scaler') else loss

        facts, samples = [], non_finite_samples(self._batch)
        try:
            seen, losses = trace(wrapped, compute_losses, sum_losses, len(paths))
        # Models with a training step of their own, say. What was found so far must be told.
        except Exception as error:
            facts.append(f'the iteration could not be repeated to find the layer: {type(error).__name__}: {error}')
        else:
            if samples:
                facts.append('first: the images as they were loaded')
            elif seen.forward:
                facts.append(f'first: {seen.forward}')
            elif seen.backward:
                facts.append(f'first, in the backward pass: {seen.backward}')
            elif not losses:
                facts.append('between the layers, all was finite when the iteration was repeated')
            if losses:
                facts.append(f'losses: {listed(losses)}')
            samples = samples or seen.samples
        if weights:
            facts.append(f'weights: {listed(weights)}')
        if paths:
            facts.append(f'images: {listed([paths[index] for index in samples] or paths)}')
        return facts


def _unwrap(model: nn.Module) -> nn.Module:
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def _anywhere(found: bool) -> bool:
    """Whether any process found something."""
    if dist.get_world_size() == 1:
        return found
    flag = torch.tensor(int(found))
    dist.all_reduce(flag, 'max')
    return bool(flag)
