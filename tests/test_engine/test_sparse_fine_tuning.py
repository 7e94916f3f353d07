"""Training that starts from sparse weights: their pattern of zeros is kept, or losing it is refused.

Run as a script it is one rank of the distributed test.
"""

import itertools
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from pelk_mm.compat import setup
from pelk_mm.engine import DynamicSparsityHook
from pelk_mm.models import PeLK
from pelk_mm.testing.equality import assert_same
from pelk_mm.testing.processes import run_ranks

RUN_NAMES = itertools.count()
BACKBONE = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), kernel_sizes=(9, 9, 9, 9))
SPARSE = ('conv.weight', 'hidden.weight')
DRAWN = [dict(init=init, sparsity=0.4) for init in ('snip', 'erk', 'uniform')]


class Net(BaseModel):

    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, classes)

    def forward(self, image, label, mode='loss'):
        x = nn.functional.gelu(self.norm(self.conv(image))).mean((2, 3))
        return dict(loss=nn.functional.cross_entropy(self.head(nn.functional.gelu(self.hidden(x))), label))


class WithBackbone(BaseModel):

    def __init__(self, checkpoint):
        super().__init__()
        self.backbone = PeLK(BACKBONE, init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint=checkpoint))
        self.head = nn.Linear(10, 4)

    def forward(self, image, label, mode='loss'):
        return dict(loss=nn.functional.cross_entropy(self.head(self.backbone(image)[-1].flatten(1)), label))


class Images(Dataset):

    def __init__(self, side=6):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(20, 3, side, side, generator=generator)
        self.labels = torch.randint(4, (20, ), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(image=self.images[index], label=self.labels[index])


def make_runner(work_dir, model, sparsity, steps=6, ema=False, side=6, **kwargs):
    setup()
    return Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=f'sparse{next(RUN_NAMES)}',
        train_dataloader=ConfigDict(
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=dict(type=Images, side=side)),
        train_cfg=dict(type='pelk_mm.ResumableIterBasedTrainLoop', max_iters=steps),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.05)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
        custom_hooks=[
            *([dict(type='EMAHook', momentum=0.1, update_buffers=True)] if ema else []),
            dict(type='pelk_mm.DynamicSparsityHook', **sparsity)
        ],
        randomness=dict(seed=0),
        log_level='ERROR',
        default_scope='mmengine',
        **kwargs)


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, DynamicSparsityHook))


def live(model, names=SPARSE):
    weights = dict(model.named_parameters())
    return {name: weights[name].detach() != 0 for name in names}


@pytest.fixture
def sparse_file(tmp_path):
    """The weights of a net of which two layers of three are sparse, and nothing else."""
    torch.manual_seed(3)
    model = Net()
    with torch.no_grad():
        for name in SPARSE:
            weight = model.get_parameter(name)
            weight.mul_(torch.rand(weight.shape) < 0.6)
    path = tmp_path / 'sparse.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture
def pattern(sparse_file):
    state = torch.load(sparse_file, weights_only=True)['state_dict']
    return {name: state[name] != 0 for name in SPARSE}


def test_zeros_stay_and_all_else_trains(tmp_path, sparse_file, pattern):
    before = torch.load(sparse_file, weights_only=True)['state_dict']
    runner = make_runner(tmp_path, Net(), dict(init='zeros'), ema=True, load_from=sparse_file)
    runner.train()
    assert_same(live(runner.model), pattern)
    average = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
    assert_same(live(average), pattern)
    assert hook_of(runner).masks.keys() == set(SPARSE)
    for name in SPARSE:
        assert (runner.model.get_parameter(name) != before[name])[pattern[name]].all()
    assert runner.model.head.weight.all()


def test_pattern_may_go_on_changing(tmp_path, sparse_file, pattern):
    sparsity = dict(init='zeros', update_interval=2, prune_rate=0.3)
    runner = make_runner(tmp_path, Net(), sparsity, load_from=sparse_file)
    runner.train()
    masks = hook_of(runner).masks
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        name: int(mask.sum()) for name, mask in pattern.items()}
    assert all((masks[name] != pattern[name]).any() for name in SPARSE)
    assert all((live(runner.model)[name] <= masks[name]).all() for name in SPARSE)


@pytest.mark.parametrize('sparsity', DRAWN, ids=lambda sparsity: sparsity['init'])
def test_new_masks_over_zeros_are_refused_unless_asked_for(tmp_path, sparse_file, pattern, sparsity):
    runner = make_runner(tmp_path, Net(), sparsity, load_from=sparse_file)
    density = pattern['conv.weight'].float().mean()
    with pytest.raises(ValueError, match=re.escape(f"init='{sparsity['init']}' would draw") +
                       rf".*2 of 3 layers.*conv.weight a density of {density:.4f}. Use init='zeros'.*redraw=True"):
        runner.train()
    assert runner.iter == 0
    assert_same(live(runner.model), pattern)

    runner = make_runner(tmp_path, Net(), dict(sparsity, redraw=True), load_from=sparse_file, steps=1)
    runner.train()
    drawn = hook_of(runner).masks
    if sparsity['init'] == 'uniform':
        assert {name: int(mask.sum()) for name, mask in drawn.items()} == {
            name: round(0.6 * mask.numel()) for name, mask in drawn.items()}
    assert any((drawn[name] != pattern[name]).any() for name in SPARSE)


def test_only_what_the_hook_masks_counts(tmp_path, sparse_file, pattern):
    """A dense head beside a sparse backbone may get masks."""
    sparsity = dict(init='uniform', sparsity=0.5, include=r'^head\.')
    runner = make_runner(tmp_path, Net(), sparsity, load_from=sparse_file)
    runner.train()
    assert int(hook_of(runner).masks['head.weight'].sum()) == 64
    # Nothing holds the other zeros.
    assert live(runner.model)['conv.weight'].all()


@pytest.mark.parametrize('zero_head', [False, True])
def test_new_head_stays_dense(tmp_path, sparse_file, pattern, zero_head):
    """One of other classes, which is not loaded, also if all of it is initialised to zero."""
    model = Net(classes=7)
    if zero_head:
        nn.init.zeros_(model.head.weight)
    runner = make_runner(tmp_path, model, dict(init='zeros'), load_from=sparse_file)
    runner.train()
    assert_same(live(runner.model), pattern)
    assert runner.model.head.weight.all()


# Behind a layer of zeros SNIP has no gradient.
@pytest.mark.parametrize(('init', 'zeros'), [('snip', (3, 5)), ('erk', (3, 5)), ('erk', ...), ('uniform', ...)])
def test_other_zeros_are_no_pattern(tmp_path, init, zeros):
    """One by chance, or a layer that starts from zero."""
    model = Net()
    with torch.no_grad():
        (model.head if zeros is ... else model.hidden).weight[zeros] = 0
    sparsity = dict(init=init, sparsity=0.4)
    runner = make_runner(tmp_path, model, sparsity, steps=1)
    runner.train()
    dead = sum(int((~mask).sum()) for mask in hook_of(runner).masks.values())
    assert dead == pytest.approx(0.4 * (432 + 512 + 128), rel=0.05)


@pytest.mark.parametrize('step', [4, 6])
def test_zeros_that_were_just_grown_are_reported(tmp_path, step):
    """A checkpoint that is saved right after an update holds many; that of the last step has none."""
    sparsity = dict(init='uniform', sparsity=0.4, update_interval=2, prune_rate=0.5)
    make_runner(tmp_path / 'first', Net(), sparsity).train()
    checkpoint = str(tmp_path / f'first/iter_{step}.pth')
    saved = torch.load(checkpoint, weights_only=False)
    before = {name: saved['state_dict'][name] != 0 for name in (*SPARSE, 'head.weight')}
    runner = make_runner(tmp_path, Net(), dict(init='zeros'), load_from=checkpoint)
    messages = []
    runner.logger.warning = messages.append
    runner.train()
    assert_same(live(runner.model, before), before)
    live_weights = sum(round(0.6 * mask.numel()) for mask in before.values())
    zero = live_weights - sum(int(mask.sum()) for mask in before.values())
    reported = f'counts {zero} of {live_weights} live weights as dead' in ' '.join(map(str, messages))
    assert reported == (step == 4)


@pytest.mark.parametrize('redraw', [False, True])
def test_resuming_is_not_refused(tmp_path, redraw):
    sparsity = dict(init='uniform', sparsity=0.4, redraw=redraw)
    straight = make_runner(tmp_path / 'straight', Net(), sparsity)
    straight.train()
    resumed = make_runner(tmp_path, Net(), sparsity, resume=True, load_from=str(tmp_path / 'straight/iter_2.pth'))
    resumed.train()
    assert_same(hook_of(resumed).masks, hook_of(straight).masks)
    assert_same(dict(resumed.model.state_dict()), dict(straight.model.state_dict()))


def sparse_backbone(tmp_path):
    torch.manual_seed(0)
    backbone = PeLK(BACKBONE)
    state = backbone.state_dict()
    for name in backbone.get_sparse_parameters():
        state[name] *= torch.rand(state[name].shape) < 0.6
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in state.items()}), tmp_path / 'pelk.pth')
    names = [f'backbone.{name}' for name in backbone.get_sparse_parameters()]
    return str(tmp_path / 'pelk.pth'), {name: state[name.removeprefix('backbone.')] != 0 for name in names}


def test_pattern_of_a_pretrained_backbone_stays_at_another_image_size(tmp_path):
    path, pattern = sparse_backbone(tmp_path)
    runner = make_runner(tmp_path, WithBackbone(path), dict(init='zeros'), steps=3, side=48)
    runner.train()
    assert_same(live(runner.model, pattern), pattern)
    assert runner.model.head.weight.all()


def test_new_masks_over_a_pretrained_backbone_are_refused(tmp_path):
    path, _ = sparse_backbone(tmp_path)
    with pytest.raises(ValueError, match=r'for example backbone\..* a density of 0\.[56]'):
        make_runner(tmp_path, WithBackbone(path), DRAWN[2], side=32).train()


def test_redraw_has_no_meaning_for_kept_zeros():
    with pytest.raises(ValueError, match="redraw must be False with init='zeros'.*got True"):
        DynamicSparsityHook(init='zeros', redraw=True)


def train_one_rank(rank, work_dir):
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', f'file://{work_dir}/store', rank=rank, world_size=2)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    runner = make_runner(
        work_dir, Net(), dict(init='zeros'), load_from=f'{work_dir}/sparse.pth', launcher='pytorch',
        cfg=dict(model_wrapper_cfg=wrapper))
    runner.train()
    torch.save(live(runner.model.module), Path(work_dir, f'rank{rank}.pth'))


def test_two_ranks_keep_the_pattern(tmp_path, sparse_file, pattern):
    run_ranks(__file__, [(rank, tmp_path) for rank in (0, 1)], tmp_path)
    for rank in (0, 1):
        assert_same(torch.load(tmp_path / f'rank{rank}.pth', weights_only=True), pattern)


if __name__ == '__main__':
    train_one_rank(int(sys.argv[1]), sys.argv[2])
