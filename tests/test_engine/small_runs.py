"""Small runs for the tests of hooks; as a script, one of two ranks of such a run.

Plain imports only: a script belongs to no package.
"""

import itertools
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

from pelk_mm.compat import setup
from pelk_mm.engine import DynamicSparsityHook
from pelk_mm.engine.nan_tracing import tensor_norms
from pelk_mm.engine.sharding import unwrap
from pelk_mm.models import PeLK

RUN_NAMES = itertools.count()
# What a script of ranks imports.
MODULES = ('pelk_mm.engine', 'pelk_mm.models', 'pytest', 'torch._dynamo')
# The block of ``TwoLosses`` that NaN is planted in.
BLOCK = 'backbone.stages.1.blocks.1'
NAN, INF = float('nan'), float('inf')


def small_runner(work_dir, model, data, cls=Runner, **kwargs):
    """Build a runner with batches of four; ``data`` goes to the loader, the rest to the runner."""
    setup()
    settings = dict(
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        randomness=dict(seed=0),
        log_level='ERROR',
        default_scope='mmengine')
    return cls(
        model=model,
        work_dir=str(work_dir),
        experiment_name=f'run{next(RUN_NAMES)}',
        train_dataloader=ConfigDict(dict(batch_size=4, num_workers=0), **data),
        **{**settings, **kwargs})


class On(Hook):
    """Calls a function with the runner in one of the methods of a hook, always or only in the n-th call.

    Attributes:
        calls (int): Of the method, until now.
    """

    # When all other hooks have run.
    priority = 'LOWEST'

    def __init__(self, method, function=lambda runner: None, only=None):
        self.function, self.only, self.calls = function, only, 0
        setattr(self, method, self.call)

    def call(self, runner, *args, **kwargs):
        self.calls += 1
        if self.only in (None, self.calls):
            self.function(runner)


class Net(BaseModel):
    """Convolution, norm, dropout and classifier: 2-D and 4-D weights, buffers, and randomness in the step."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, classes)

    def forward(self, image, label, mode='loss'):
        # GELU, for gradients everywhere.
        x = nn.functional.gelu(self.norm(self.conv(image))).mean((2, 3))
        x = nn.functional.dropout(nn.functional.gelu(self.hidden(x)), 0.2, self.training)
        scores = self.head(x)
        return dict(loss=nn.functional.cross_entropy(scores, label)) if mode == 'loss' else list(scores)


class Images(Dataset):
    """Noise, augmented with the generators of PyTorch, NumPy and Python."""

    def __init__(self, side=6):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(40, 3, side, side, generator=generator)
        self.labels = torch.randint(4, (40, ), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index] + 0.1 * torch.randn(self.images.shape[1:]) + float(np.random.rand())
        return dict(image=image.flip(-1) if random.random() < 0.5 else image, label=self.labels[index])


def sparse_runner(work_dir,
                  sparsity=None,
                  model=None,
                  loop='Iter',
                  steps=20,
                  optimizer=None,
                  optim_wrapper=None,
                  ema=False,
                  watch=None,
                  interval=1000,
                  workers=0,
                  seed=0,
                  side=6,
                  **kwargs):
    """Build a runner whose hook has the arguments ``sparsity``."""
    hooks = [dict(type='EMAHook', momentum=0.1, update_buffers=True)] if ema else []
    hooks += [] if sparsity is None else [dict(type='pelk_mm.DynamicSparsityHook', **sparsity)]
    hooks += [] if watch is None else [On('after_train_iter', watch)]
    length = dict(max_iters=steps) if loop == 'Iter' else dict(max_epochs=steps // 10)
    data = dict(
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='InfiniteSampler' if loop == 'Iter' else 'DefaultSampler', shuffle=True),
        dataset=dict(type=Images, side=side))
    return small_runner(
        work_dir,
        model or Net(),
        data,
        train_cfg=dict(type=f'pelk_mm.Resumable{loop}BasedTrainLoop', **length),
        optim_wrapper=dict(
            optimizer=optimizer or dict(type='AdamW', lr=0.01, weight_decay=0.05), **(optim_wrapper or {})),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False, T_max=steps),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=interval)),
        custom_hooks=hooks,
        randomness=dict(seed=seed),
        **kwargs)


def trained(*arguments, **kwargs):
    """A sparse runner that has trained."""
    runner = sparse_runner(*arguments, **kwargs)
    runner.train()
    return runner


def sparsity_hook(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, DynamicSparsityHook))


def average_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module


# Numbers that are not finite


class ImagesWithPaths(Dataset):
    """Noise with paths, of which number ``broken`` holds one NaN."""

    def __init__(self, broken=None):
        self.images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        if broken is not None:
            self.images[broken, 1, 5, 5] = NAN

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        sample = BaseDataElement(metainfo=dict(img_path=f'images/{index}.png'))
        return dict(inputs=self.images[index], data_samples=sample)


class TwoLosses(BaseModel):
    """A small PeLK with two losses, dropout among its layers."""

    def __init__(self):
        super().__init__()
        sizes = dict(channels=[8, 16, 16, 16], kernel_sizes=[13, 9, 7, 5])
        self.backbone = PeLK('pico', **sizes, drop_path_rate=0.2, layer_scale_init_value=1.0)
        self.head = nn.Linear(self.backbone.channels[-1], 4)

    def forward(self, inputs, data_samples, mode='loss'):
        scores = self.head(self.backbone(torch.stack(inputs))[0])
        return dict(loss_cls=scores.square().mean(), loss_aux=scores.abs().mean(), acc=scores.new_tensor(NAN))


class BadBackward(nn.Module):
    """Identity, whose gradient is that of a root at zero: NaN."""

    def forward(self, x):
        return x + (0 * x).sqrt()


class Shift(nn.Module):
    """Adds to images, counted from ``first`` on."""

    def __init__(self, value, first=0):
        super().__init__()
        self.value, self.first = value, first

    def forward(self, x):
        shift = torch.zeros(len(x), *[1] * (x.ndim - 1), dtype=x.dtype)
        shift[self.first:] = self.value
        return x + shift


def stopped(runner) -> str:
    """The message of the error that stops the run."""
    with pytest.raises(FloatingPointError) as error:
        runner.train()
    return str(error.value)


def all_finite(tensors) -> bool:
    """By the norms that the hook reads."""
    return bool(torch.isfinite(tensor_norms(list(tensors))).all())


def block_of(model):
    return model.get_submodule(BLOCK)


def set_weight(value):
    def meddle(model):
        with torch.no_grad():
            block_of(model).pointwise_conv1.weight[0, 0] = value

    return meddle


def replace_act(module):
    def meddle(model):
        block_of(model).act = module

    return meddle


def spoil_gamma(model):
    """A gradient that is not finite only where a weight takes it."""
    block_of(model).gamma.register_hook(lambda gradient: gradient * NAN)


def shift_loss(model):
    """One more loss, infinite; its gradient is zero, so that nothing else shows it."""
    model.register_forward_hook(lambda module, args, losses: dict(losses, loss_shift=torch.tensor(INF)))


def watched_runner(work_dir,
                   meddle=None,
                   iteration=2,
                   steps=4,
                   broken=None,
                   optim_wrapper=None,
                   hook=None,
                   checkpoint_interval=1,
                   hooks=(),
                   **kwargs):
    """Build a runner with a CheckFiniteHook of the arguments ``hook``; ``meddle`` gets the model before a step."""
    torch.manual_seed(0)
    hooks = [{'type': 'pelk_mm.CheckFiniteHook', **(hook or {})}, *hooks]
    if meddle:
        hooks.append(On('before_train_iter', lambda runner: meddle(unwrap(runner.model)), iteration + 1))
    return small_runner(
        work_dir,
        TwoLosses(),
        dict(
            sampler=dict(type='InfiniteSampler', shuffle=False), dataset=dict(type=ImagesWithPaths, broken=broken)),
        train_cfg=dict(by_epoch=False, max_iters=steps),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01), **(optim_wrapper or {})),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=checkpoint_interval)),
        custom_hooks=hooks,
        **kwargs)


def train_one_rank(rank, work_dir, case):
    """Train in one of two ranks, and keep the weights of sparse training."""
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', f'file://{work_dir}/store', rank=rank, world_size=2)
    # MMEngine assumes a GPU for each rank by itself.
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    settings = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper))
    if case in ('act', 'loss'):
        meddle = dict(act=replace_act(Shift(NAN)), loss=shift_loss)[case] if rank else None
        watched_runner(work_dir, meddle, **settings).train()
        return
    runner = sparse_runner(work_dir, dict(init='zeros'), steps=6, load_from=f'{work_dir}/sparse.pth', **settings)
    runner.train()
    torch.save(dict(weights=runner.model.module.state_dict(), random=torch.rand(1)), Path(work_dir, f'rank{rank}.pth'))


if __name__ == '__main__':
    train_one_rank(int(sys.argv[1]), *sys.argv[2:])
