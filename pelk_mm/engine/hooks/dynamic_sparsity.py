"""Sparse training with masks that are redrawn in part every few steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmengine import dist
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pelk_mm.registry import HOOKS

from ..seeding import derive_seed, get_rng_state, seed_all, set_rng_state
from ..sharding import unwrap
from ..sparsity import (
    Pattern,
    apply_masks,
    clean_parameters,
    cosine_prune_rate,
    draw_masks,
    erk_densities,
    find_sparse_parameters,
    group_densities,
    masks_from_zeros,
    pack_mask,
    patterned_densities,
    prune_and_grow,
    saliencies,
    snip_densities,
    uniform_densities,
    unpack_masks,
)

INITS = ('snip', 'erk', 'uniform', 'zeros')
PATTERN_INITS = ('magnitude', 'uniform', 'zeros')


@HOOKS.register_module()
class DynamicSparsityHook(Hook):
    """Train a model with a fixed share of its weights at zero, as SLaK and PeLK do.

    Before training each layer gets a density and a random mask of it. After every optimiser step (not iteration: with
    gradient accumulation, or if AMP skips a step, there are fewer) dead weights are set to exactly zero, and SGD's
    momentum of them too; Adam's moments stay unchanged. Every ``update_interval`` steps the share p of each layer's
    live weights with the smallest magnitude is pruned, and as many dead ones, drawn at random, are grown. A weight that
    was just pruned may be drawn too, and keeps its value; the others start from zero. p follows a cosine
    from ``prune_rate`` to ``final_prune_rate`` over all steps; there is no update after the last step. The copies of
    MMEngine's EMAHook are masked too, after each of their updates.

    With ``pattern='2:4'`` two of every four consecutive inputs of a linear layer stay live, which sparse tensor cores
    make use of. Pruning and growing then exchange one weight within a group, in the share p of each layer's groups.
    Only 2-D weights whose number of inputs is a multiple of the group are masked.

    All ranks have rank 0's masks. Masks, step and prune rate are saved in the checkpoint under ``dynamic_sparsity``.
    Random numbers depend only on the runner's seed and the step, so resumed training continues with the same masks.

    Args:
        init (str): How each layer's density is chosen: ``'snip'``, its share among the most salient weights of one
            training batch; ``'erk'``, Erdos-Renyi-Kernel; ``'uniform'``; layers of density 0.99 or more stay dense. Or
            ``'zeros'``: the masks are the zeros of the loaded weights, which keep their pattern; layers without a zero,
            or of zeros only, stay dense. With a pattern ``'magnitude'``, the largest weights of each group;
            ``'uniform'``, random ones; or ``'zeros'``, for the layers that have the pattern. Defaults to 'snip'.
        sparsity (float, optional): Share of dead weights, in (0, 1): 0.4 in SLaK and PeLK. Not for ``'zeros'``, and not
            with a pattern.
        update_interval (int, optional): Optimiser steps between two updates of the masks; None keeps them as they are.
            SLaK: 2000 for T, 100 for S and B. With ``'zeros'``, too: None fixes the loaded pattern, a number goes on
            pruning and growing from it. Defaults to None.
        prune_rate (float): p at the start, in (0, 1]. SLaK: 0.5 for T, 0.3 for S and B. Defaults to 0.5.
        final_prune_rate (float): p at the end. Defaults to 0.005, as SLaK was trained.
        include (str | Sequence[str]): Regular expressions; only weights whose name contains a match of one are masked.
            Empty: every trained 2-D and 4-D weight of the model, except those that a submodule's
            ``get_sparse_parameters`` leaves out. Defaults to ().
        exclude (str | Sequence[str]): Regular expressions; weights whose name contains a match are not masked.
            Defaults to ().
        snip_batch_size (int, optional): Images of each rank for SNIP, which runs in fp32 and so needs more memory than
            a training step with AMP. Defaults to the batch size of the training dataloader.
        redraw (bool): Draw masks even over weights that are sparse already, which loses many of those that are live:
            0.6 of 0.6 leaves 0.36. Resumed training keeps its masks with and without it. Defaults to False.
        pattern (str, optional): ``'N:M'``, N live weights in every group of M inputs. Defaults to None.

    Raises:
        ValueError: If an argument is out of range, or a pattern matches nothing; before training, if masks are to be
            drawn over weights that are sparse already; when resuming, if the checkpoint has no masks or those of
            another model or pattern.
        TypeError: If there are several optimisers, or the weights are sharded (FSDP, DeepSpeed).

    Examples:
        >>> # PeLK-T, ImageNet
        >>> custom_hooks = [
        ...     dict(type='pelk_mm.DynamicSparsityHook', sparsity=0.4, update_interval=2000, prune_rate=0.5)
        ... ]
        >>> # Half of the weights of the linear layers, as sparse tensor cores need it, from a dense model
        >>> custom_hooks = [dict(type='pelk_mm.DynamicSparsityHook', pattern='2:4', init='magnitude')]
        >>> # Fine-tuning of a sparse model that load_from names
        >>> custom_hooks = [dict(type='pelk_mm.DynamicSparsityHook', init='zeros')]
        >>> # A pretrained backbone in a segmentor or detector
        >>> custom_hooks = [dict(type='pelk_mm.DynamicSparsityHook', init='zeros', include=r'^backbone\\.')]
    """

    # After EMAHook, whose copy is masked, and before CheckpointHook.
    priority = 'BELOW_NORMAL'

    def __init__(self,
                 init: str = 'snip',
                 sparsity: float | None = None,
                 update_interval: int | None = None,
                 prune_rate: float = 0.5,
                 final_prune_rate: float = 0.005,
                 include: str | Sequence[str] = (),
                 exclude: str | Sequence[str] = (),
                 snip_batch_size: int | None = None,
                 redraw: bool = False,
                 pattern: str | None = None) -> None:
        self.pattern = None if pattern is None else Pattern.parse(pattern)
        inits = PATTERN_INITS if pattern else INITS
        if init not in inits:
            raise ValueError(f'init must be one of {inits} {"with" if pattern else "without"} a pattern, got {init!r}')
        if pattern and sparsity is not None:
            raise ValueError(f'sparsity must be None with a pattern, {pattern} says it, got {sparsity}')
        if init == 'zeros' and sparsity is not None:
            raise ValueError(f"sparsity must be None with init='zeros', the loaded weights say it, got {sparsity}")
        if init == 'zeros' and redraw:
            raise ValueError("redraw must be False with init='zeros', which draws no masks, got True")
        if init != 'zeros' and not pattern and (sparsity is None or not 0 < sparsity < 1):
            raise ValueError(f'sparsity must be in (0, 1), got {sparsity}')
        for name, value in (('update_interval', update_interval), ('snip_batch_size', snip_batch_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f'{name} must be None or a positive int, got {value!r}')
        if not 0 < prune_rate <= 1:
            raise ValueError(f'prune_rate must be in (0, 1], got {prune_rate}')
        if not 0 <= final_prune_rate <= prune_rate:
            raise ValueError(f'final_prune_rate must be in [0, prune_rate], got {final_prune_rate} and {prune_rate}')
        self.init = init
        self.density = 1 - (sparsity or 0)
        self.update_interval = update_interval
        self.start_prune_rate = prune_rate
        self.final_prune_rate = final_prune_rate
        self.include = include
        self.exclude = exclude
        self.snip_batch_size = snip_batch_size
        self.redraw = redraw
        self.step = 0
        self.masks: dict[str, Tensor] = {}
        self._weights: dict[str, nn.Parameter] = {}
        self._saved_state: dict | None = None

    @property
    def prune_rate(self) -> float:
        """p at the current step."""
        return cosine_prune_rate(self.step, self._total_steps, self.start_prune_rate, self.final_prune_rate)

    def before_train(self, runner: Runner) -> None:
        """Make or resume the masks, apply them, and follow the optimiser's steps."""
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise TypeError(f'DynamicSparsityHook needs one optimiser, got {len(runner.optim_wrapper)}')
        optimizer = runner.optim_wrapper.optimizer
        if isinstance(runner.model, FullyShardedDataParallel) or not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError('DynamicSparsityHook needs unsharded weights and an optimiser of PyTorch, got '
                            f'{type(runner.model).__name__} and {type(optimizer).__name__}: train without sharding '
                            '(leave out runner_type and strategy), or take the hook out of custom_hooks')
        model = unwrap(runner.model)
        self._weights = self._find_weights(model)
        self._warn_of_few(runner, model)
        self._optimizer = optimizer
        self._total_steps = math.ceil(runner.max_iters / runner.optim_wrapper._accumulative_counts)
        averages = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
        self._average_weights = [clean_parameters(average) for average in averages]
        resumed = runner.iter > 0
        if resumed:
            self._resume(runner)
        else:
            self.step = 0
            self.masks = self._initial_masks(runner, model)
        self._saved_state = None
        self._broadcast_masks()
        self._apply_masks()
        origin = 'the checkpoint' if resumed else self.init
        self._log(runner, f'masks of {len(self.masks)} of {len(self._weights)} layers from {origin}')
        self._handle = self._optimizer.register_step_post_hook(lambda *_: self._after_optimizer_step(runner))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Mask the EMA copies, which were just updated."""
        for weights in self._average_weights:
            apply_masks(weights, self.masks)

    def after_train(self, runner: Runner) -> None:
        """Let the optimiser go."""
        self._handle.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the masks, packed to bits, the step, the prune rate and the pattern: tensors and plain values only."""
        if not self._weights:
            return
        checkpoint['dynamic_sparsity'] = dict(
            **(dict(pattern=str(self.pattern)) if self.pattern else {}),
            step=self.step,
            prune_rate=self.prune_rate,
            masks={
                name: dict(bits=pack_mask(mask), shape=list(mask.shape))
                for name, mask in self.masks.items()
            })

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what was saved until training starts; it is used if training is resumed."""
        self._saved_state = checkpoint.get('dynamic_sparsity')

    def _find_weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        weights = find_sparse_parameters(model, self.include, self.exclude)
        if self.pattern is None:
            return weights
        fitting = {name: weight for name, weight in weights.items() if self.pattern.fits(weight)}
        if not fitting:
            name, weight = next(iter(weights.items()))
            raise ValueError(f'pattern {self.pattern} needs 2-D weights with a multiple of {self.pattern.group} '
                             f'inputs, none of {len(weights)} is one, for example {name} of shape '
                             f'{tuple(weight.shape)}')
        return fitting

    def _warn_of_few(self, runner: Runner, model: nn.Module) -> None:
        trained = [p for p in model.parameters() if p.ndim in (2, 4) and p.requires_grad]
        size, own = (sum(p.numel() for p in weights) for weights in (trained, self._weights.values()))
        if own < 0.1 * size:
            runner.logger.warning(
                f'DynamicSparsityHook: masks apply to {len(self._weights)} of {len(trained)} trained weights of 2 or 4 '
                f'dimensions ({own / size:.1%} of their elements), for example {next(iter(self._weights))}. Check '
                'include, exclude and frozen layers if this is less than you expect')

    def _initial_masks(self, runner: Runner, model: BaseModel) -> dict[str, Tensor]:
        if self.init == 'zeros':
            masks = masks_from_zeros(self._weights)
            if self.pattern:
                # A weight that was grown in the step of the checkpoint is zero: the group is filled up.
                masks = {name: self.pattern.mask(self._weights[name].abs()) for name, mask in masks.items()
                         if self.pattern.holds(mask)}
            else:
                self._warn_of_live_zeros(runner)
            if not masks:
                zeros = f'has the pattern {self.pattern}' if self.pattern else 'is zero'
                runner.logger.warning(f"DynamicSparsityHook: init='zeros', but no weight {zeros}: nothing is masked. "
                                      'Was a sparse checkpoint loaded?')
            return masks
        patterned = {} if self.redraw else patterned_densities(self._weights)
        if patterned:
            name, density = next(iter(patterned.items()))
            raise ValueError(f'init={self.init!r} would draw masks over weights that are sparse already, and lose many '
                             f'that are live: {len(patterned)} of {len(self._weights)} layers have zeros, for example '
                             f"{name} a density of {density:.4f}. Use init='zeros' without sparsity to keep their "
                             'pattern, or redraw=True if it is to be lost')
        if self.pattern:
            generator = self._generator(runner)
            return {name: self.pattern.mask(weight.abs() if self.init == 'magnitude' else torch.rand(
                        weight.shape, generator=generator, device=weight.device))
                    for name, weight in self._weights.items()}
        if self.init == 'snip':
            densities = self._snip_densities(runner, model)
        else:
            function = dict(uniform=uniform_densities, erk=erk_densities)[self.init]
            densities = function(self._weights, self.density)
        return draw_masks(self._weights, densities, self._generator(runner))

    def _warn_of_live_zeros(self, runner: Runner) -> None:
        """Warn of weights that are zero as they were grown in the step of the checkpoint; their mask is not kept."""
        live = zero = 0
        for name, mask in unpack_masks(self._saved_state).items() if self._saved_state else ():
            weight = self._weights.get(name)
            if weight is not None and mask.shape == weight.shape:
                live += int(mask.sum())
                zero += int((mask & (weight == 0).cpu()).sum())
        if zero > 0.01 * live:
            runner.logger.warning(f"DynamicSparsityHook: init='zeros' counts {zero} of {live} live weights as dead, as "
                                  'they are zero in the checkpoint: it was saved right after an update of its masks. '
                                  'That of another step has fewer')

    def _snip_densities(self, runner: Runner, model: BaseModel) -> dict[str, float]:
        """Run SNIP on one batch of the training data, which does not change the order of the dataloader.

        Each rank has its share of the batch, so the densities are those of one rank with the complete batch.
        """
        loader = runner.train_dataloader
        rank, world_size = dist.get_dist_info()
        size = self.snip_batch_size or loader.batch_size or loader.batch_sampler.batch_size
        size = min(size, max(1, len(loader.dataset) // world_size))
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train()
        state = get_rng_state()
        seed_all(derive_seed('snip', runner.seed))
        indices = torch.randperm(len(loader.dataset)).tolist()
        samples = []
        for position in range(rank, size * world_size, world_size):
            seed_all(derive_seed('snip sample', runner.seed, position))
            samples.append(loader.dataset[indices[position % len(indices)]])
        batch = loader.collate_fn(samples)
        seed_all(derive_seed('snip step', runner.seed, rank))
        losses = model._run_forward(model.data_preprocessor(batch, True), mode='loss')
        saliency = saliencies(model.parse_losses(losses)[0], self._weights)
        set_rng_state(state)
        # The statistics of the norms must not know of this batch.
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        densities = [snip_densities(saliency, self.density)]
        dist.broadcast_object_list(densities)
        return densities[0]

    def _resume(self, runner: Runner) -> None:
        if self._saved_state is None:
            raise ValueError('training is resumed with DynamicSparsityHook, but the checkpoint has no masks: it was '
                             "trained without. To start from its weights use load_from, with init='zeros' to keep its "
                             'zeros')
        pattern, saved = str(self.pattern or None), str(self._saved_state.get('pattern'))
        if pattern != saved:
            raise ValueError(f'pattern is {pattern}, the masks of the checkpoint have {saved}: resume with the pattern '
                             'of the stopped training')
        self.masks = {}
        for name, mask in unpack_masks(self._saved_state).items():
            shape = tuple(self._weights[name].shape) if name in self._weights else None
            if mask.shape != shape:
                raise ValueError(f'the checkpoint has a mask of shape {tuple(mask.shape)} for {name}, whose shape is '
                                 f'now {shape}: resume with the model, include and exclude of the stopped training')
            self.masks[name] = mask.to(self._weights[name].device)
        self.step = self._saved_state['step']
        saved_rate = self._saved_state['prune_rate']
        if not math.isclose(self.prune_rate, saved_rate):
            runner.logger.warning(f'DynamicSparsityHook: the prune rate at step {self.step} of {self._total_steps} is '
                                  f'{self.prune_rate:.4f}, in the checkpoint {saved_rate:.4f}: another schedule')

    def _after_optimizer_step(self, runner: Runner) -> None:
        self.step += 1
        self._apply_masks()
        if self.update_interval and self.step % self.update_interval == 0 and self.step < self._total_steps:
            self._update_masks(runner)

    def _update_masks(self, runner: Runner) -> None:
        generator, total = self._generator(runner), 0
        update = self.pattern.prune_and_grow if self.pattern else prune_and_grow
        for name, mask in self.masks.items():
            self.masks[name], count = update(self._weights[name], mask, self.prune_rate, generator)
            total += count
        self._broadcast_masks()
        self._apply_masks()
        self._log(runner, f'{total} weights pruned and as many grown')

    def _generator(self, runner: Runner) -> torch.Generator:
        device = next(iter(self._weights.values())).device
        return torch.Generator(device).manual_seed(derive_seed('masks', runner.seed, self.step))

    def _broadcast_masks(self) -> None:
        for mask in self.masks.values():
            dist.broadcast(mask.view(torch.uint8))

    def _apply_masks(self) -> None:
        apply_masks(self._weights, self.masks)
        for name, mask in self.masks.items():
            momentum = self._optimizer.state.get(self._weights[name], {}).get('momentum_buffer')
            if momentum is not None:
                momentum.mul_(mask)

    def _log(self, runner: Runner, event: str) -> None:
        dead = sum(int((~mask).sum()) for mask in self.masks.values())
        size = sum(weight.numel() for weight in self._weights.values())
        density = 1 - dead / size
        runner.message_hub.update_scalar('train/density', density)
        if self.update_interval:
            event += f'; prune rate {self.prune_rate:.4f}'
            runner.message_hub.update_scalar('train/prune_rate', self.prune_rate)
        groups = group_densities(self._weights, self.masks)
        runner.logger.info(f'Dynamic sparsity, optimiser step {self.step}: {event}; density {density:.4f} of '
                           f'{size / 1e6:.2f} M weights: ' + ', '.join(f'{group} {value:.3f}'
                                                                       for group, value in groups.items()))
