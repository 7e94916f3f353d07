"""Stop training when a loss, a gradient, a weight or a buffer turns non-finite, and name the layer where it did."""

from __future__ import annotations

import torch
from mmengine import dist
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pelk_mm.module_names import clean_name
from pelk_mm.registry import HOOKS

from ...checkpoints.matching import shorten
from ..nan_tracing import image_paths, non_finite_names, non_finite_samples, tensor_norms, trace
from ..polling import Poll, max_over_processes, positive
from ..seeding import get_rng_state, set_rng_state
from ..sharding import unwrap

# What a run stops for, the first of an iteration first.
KINDS = ('gradient', 'loss', 'weight', 'buffer')
# Stands for an iteration that does not come.
NEVER = 2**62


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Stop a run whose loss, gradient or weight is NaN or infinite, and name losses, layer, parameters and images.

    Each iteration stores on the device which losses and gradients were finite, without waiting. The flags are
    read, and shared by all processes in one collective, every ``interval`` iterations, at least every five seconds,
    before a checkpoint is written and at the end of an epoch: no weight in a checkpoint is NaN or infinite, and no
    buffer NaN, as running statistics become after an overflow in AMP. One process on the CPU, where reading waits for
    nothing, reads the flags in every iteration.

    If the iteration in which the flags are read is the first with such a number, the optimiser does not get its
    gradients, so the weights stay good, and its forward and backward pass are repeated with the same random
    numbers to find the layer. If it was an earlier one, the message names that iteration, its losses, parameters and
    images, and says how to have the layer named. All processes stop together with the same message.

    A step that AMP's loss scaler skips does not stop the run: after an overflow it scales less. Many skipped steps in
    a row do stop it. With gradient accumulation, gradients are checked when they are used.

    mmdet's ``CheckInvalidLossHook`` checks only the sum of the losses, every 50 iterations; MMEngine's
    ``detect_anomalous_params`` looks for parameters that have no gradient. Our tools add this hook to every training.

    Args:
        interval (int): Iterations between two readings of the flags, at most. 1 names the layer in every case, and
            waits for the device in every iteration. Defaults to 50.
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

    def __init__(self, interval: int = 50, max_skipped_steps: int = 24) -> None:
        self.poll = Poll(interval)
        self.poll.add('non_finite', lambda: -self._first)
        self._first = NEVER
        self.max_skipped_steps = positive('max_skipped_steps', max_skipped_steps)
        self._handles: list | None = None
        self._skipped = 0

    def before_train(self, runner: Runner) -> None:
        """Follow the steps of the optimisers."""
        wrappers = runner.optim_wrapper
        wrappers = list(wrappers.values()) if isinstance(wrappers, OptimWrapperDict) else [wrappers]
        optimizers = [wrapper.optimizer for wrapper in wrappers]
        self._handles = [
            # An optimiser that is not PyTorch's, as DeepSpeed's: only the losses are checked.
            optimizer.register_step_pre_hook(lambda optimizer, *_: self._before_step(optimizer))
            for optimizer in optimizers if isinstance(optimizer, torch.optim.Optimizer)
        ]
        self.poll.restart()
        # Iteration, kind, names, and which of these are finite, (len(names), ), bool, on the device.
        self._flags: list[tuple[int, str, list[str], Tensor]] = []
        self._paths: dict[int, list[str]] = {}
        self._kept_back: dict[nn.Parameter, Tensor] = {}
        self._names = {parameter: clean_name(name) for name, parameter in unwrap(runner.model).named_parameters()}
        self._batch, self._rng_state = None, get_rng_state()
        self._iteration, self._saves = runner.iter - 1, False
        # The CPU is not waited for.
        devices = {parameter.device.type for parameter in runner.model.parameters()}
        self._read_always = devices <= {'cpu'} and dist.get_world_size() == 1

    def after_train(self, runner: Runner) -> None:
        """Let the optimisers go."""
        for handle in self._handles or ():
            handle.remove()
        self._kept_back, self._names = {}, {}
        self._handles = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Remember what it takes to repeat the iteration, and decide whether to read the flags in it."""
        self._batch = data_batch
        self._rng_state = get_rng_state()
        self._stepped = False
        self._saves = _saves_after(runner, batch_idx)
        self._reads = self._read_always or self._saves or self.poll.is_due(runner.iter + 1)
        self._iteration = runner.iter
        if not self._read_always:
            self._paths[runner.iter] = image_paths(data_batch)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Keep the flags of the losses, read all flags if it is time, and count the steps that were skipped."""
        losses = {key: torch.as_tensor(value).detach() for key, value in (outputs or {}).items() if 'loss' in key}
        if losses:
            flags = [torch.isfinite(loss).all() for loss in losses.values()]
            finite = torch.stack([flag.to(flags[-1].device) for flag in flags])
            self._flags.append((self._iteration, 'loss', list(losses), finite))
        if self._reads:
            self._first = self._find_first(runner)
            self._check(runner, self.poll.ask(runner.iter + 1)['non_finite'])
        wrapper = runner.optim_wrapper
        if not hasattr(wrapper, 'loss_scaler') or not isinstance(wrapper, OptimWrapper) or not wrapper.should_update():
            return
        self._skipped = 0 if self._stepped else self._skipped + 1
        if self._skipped == self.max_skipped_steps:
            scale = wrapper.loss_scaler.get_scale()
            self._stop(runner, self._iteration, f'the gradients of {self._skipped} steps in a row are not finite, down '
                       f'to a loss scale of {scale:g}')

    def before_val_epoch(self, runner: Runner) -> None:
        """Read the flags: the weights that are validated may be saved as the best."""
        if self._handles is not None:
            self._saves = True
            self._check(runner, *max_over_processes(-self._find_first(runner)))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save what training is stopped for, on any way to a checkpoint."""
        if self._handles is None:
            return
        self._saves = True
        self._first = self._find_first(runner)
        if self._first < NEVER and dist.get_world_size() == 1:
            self._stop(runner, *self._describe_first())
        elif self._first < NEVER:
            # The others may not come here.
            iteration, problem = self._describe_first()
            raise FloatingPointError(f'In iteration {iteration + 1} {problem}: no checkpoint is saved')

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._stepped = True
        stepped = [parameter for group in optimizer.param_groups for parameter in group['params']]
        stepped = [parameter for parameter in stepped if parameter.grad is not None]
        if not stepped:
            return
        names = [self._names.get(parameter, 'a parameter that was added') for parameter in stepped]
        finite = torch.isfinite(tensor_norms([parameter.grad for parameter in stepped]))
        self._flags.append((self._iteration, 'gradient', names, finite))
        if self._reads and self._find_wrong('gradient', self._iteration):
            # PyTorch's optimisers leave a parameter without a gradient as it is.
            self._kept_back.update((parameter, parameter.grad) for parameter in stepped)
            for parameter in stepped:
                parameter.grad = None

    def _check(self, runner: Runner, largest: float) -> None:
        """Stop if a flag is set in any process, by the largest of their answers."""
        self._first = -int(largest)
        if self._first < NEVER:
            self._stop(runner, *self._describe_first())
        self._flags.clear()
        self._paths.clear()

    def _find_first(self, runner: Runner) -> int:
        """Find the first number of this process that is not finite: iteration and kind, in one number."""
        weights = [weight for weight in runner.model.parameters() if weight.requires_grad] if self._saves else []
        if weights:
            finite = torch.isfinite(tensor_norms(weights)).all()[None]
            self._flags.append((self._iteration, 'weight', ['weights'], finite))
        buffers = _floating_buffers(runner.model).values() if self._saves else ()
        # Infinite ones may be meant, as in masks of attention.
        self._flags += [(self._iteration, 'buffer', ['buffer'], ~buffer.isnan().any()[None]) for buffer in buffers]
        flags = [finite.all() for *_, finite in self._flags]
        # Together, to wait for the device once.
        good = torch.stack([flag.to(flags[-1].device) for flag in flags]).tolist() if flags else []
        for (iteration, kind, *_), is_good in zip(self._flags, good):
            if not is_good:
                return len(KINDS) * iteration + KINDS.index(kind)
        return NEVER

    def _find_wrong(self, kind: str, iteration: int) -> list[str]:
        """Return the names of the numbers of a kind that were not finite in an iteration."""
        return [name for number, each, names, finite in self._flags if (number, each) == (iteration, kind)
                for name, good in zip(names, finite.tolist()) if not good]

    def _describe_first(self) -> tuple[int, str]:
        iteration, kind = divmod(self._first, len(KINDS))
        return iteration, f'a {KINDS[kind]} is not finite'

    def _stop(self, runner: Runner, iteration: int, problem: str) -> None:
        """Repeat the iteration, if it is the last one, in every process, and raise."""
        facts = self._explain(runner) if iteration == self._iteration else self._explain_late(iteration)
        reports = dist.all_gather_object([*facts, *self._logged(runner, iteration)])
        for parameter, gradient in self._kept_back.items():
            parameter.grad = gradient
        epoch = runner.epoch + 1
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            epoch = iteration // len(runner.train_dataloader) + 1
        lines = [f'Training stopped in iteration {iteration + 1} (epoch {epoch}): {problem}.']
        for rank, report in enumerate(reports):
            lines += [f'Process {rank}:'] if len(reports) > 1 else []
            lines += [f'  {line}' for line in report]
        lines.append('Usual causes: a learning rate too high for the batch size (--auto-scale-lr), no warm-up, no '
                     'optim_wrapper.clip_grad; fp16 where bf16 is needed; broken images or labels. The checkpoints in '
                     f'{runner.work_dir} are from before this iteration.')
        raise FloatingPointError('\n'.join(lines))

    def _explain_late(self, iteration: int) -> list[str]:
        """List the known facts of an iteration after which the weights have changed."""
        later = self._iteration - iteration
        paths = self._paths.get(iteration)
        return [
            f'the layer is not known: the flags were read {later} iterations later, when the weights had changed. '
            "Go on from the last checkpoint (--resume) with dict(type='pelk_mm.CheckFiniteHook', interval=1) in "
            'custom_hooks to have it named', *([f'images: {shorten(paths, 4)}'] if paths else [])
        ]

    def _logged(self, runner: Runner, iteration: int) -> list[str]:
        """List the losses and gradients that were not finite in an iteration."""
        losses, gradients = (self._find_wrong(kind, iteration) for kind in ('loss', 'gradient'))
        facts = [f'logged: {shorten(losses, 4)}'] if losses else []
        if gradients:
            total = sum(1 for _ in runner.model.parameters())
            facts.append(f'gradients: {len(gradients)} of {total} parameters, {shorten(gradients, 4)}')
        return facts

    def _explain(self, runner: Runner) -> list[str]:
        """Describe the batch, the weights and a second run of the iteration, in this process."""
        model, wrapper = unwrap(runner.model), runner.optim_wrapper
        # A sharded model only runs inside its wrapper; that of other models would average over the processes.
        wrapped = runner.model if isinstance(runner.model, FullyShardedDataParallel) else model
        paths = image_paths(self._batch)
        weights = non_finite_names(dict(model.named_parameters()))
        # In other cases they follow from what is wrong.
        suspects = _floating_buffers(model) if KINDS[self._first % len(KINDS)] == 'buffer' else {}
        buffers = [name for name, buffer in suspects.items() if buffer.isnan().any()]

        def compute_losses() -> dict[str, Tensor]:
            set_rng_state(self._rng_state)
            with wrapper.optim_context(wrapped):
                return wrapped._run_forward(model.data_preprocessor(self._batch, True), mode='loss')

        def sum_losses(losses) -> Tensor:
            loss = model.parse_losses(losses)[0]
            return wrapper.loss_scaler.scale(loss) if hasattr(wrapper, 'loss_scaler') else loss

        facts, samples = [], non_finite_samples(self._batch)
        try:
            seen, losses = trace(wrapped, compute_losses, sum_losses, len(paths))
        # For example models with their own training step. The facts found so far must be reported.
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
                facts.append(f'losses: {shorten(losses, 4)}')
            samples = samples or seen.samples
        if weights:
            facts.append(f'weights: {shorten(weights, 4)}')
        if buffers:
            facts.append(f'buffers: {shorten(buffers, 4)}')
        if paths:
            facts.append(f'images: {shorten([paths[index] for index in samples] or paths, 4)}')
        return facts


def _floating_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {clean_name(name): buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def _saves_after(runner: Runner, batch_idx: int) -> bool:
    """Return whether a checkpoint may be written after this iteration, or an epoch or the training ends."""
    loop = runner.train_loop
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
    ends = isinstance(loop, EpochBasedTrainLoop) and batch_idx + 1 == len(runner.train_dataloader)
    return ends or runner.iter + 1 == runner.max_iters or any(
        hook.every_n_train_iters(runner, hook.interval, hook.save_begin) for hook in hooks)
