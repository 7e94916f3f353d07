"""The hook of dynamic sparsity in real runs; stop and resume, bit for bit."""

import itertools
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper

from pelk_mm.checkpoints.publish import publish_file
from pelk_mm.engine import DynamicSparsityHook
from pelk_mm.engine.loops import SeededDataset, SeededIndex

from ..helpers.equality import assert_same
from .small_runs import Images, average_of, sparse_runner, sparsity_hook, trained

UNIFORM = dict(init='uniform', sparsity=0.5)
SNIP = dict(sparsity=0.4, update_interval=3, prune_rate=0.4)


@pytest.mark.parametrize('init', ['snip', 'erk', 'uniform'])
def test_density_holds_after_init_and_after_50_updates(tmp_path, init):
    updates = []

    def watch(runner):
        hook = sparsity_hook(runner)
        updates.append({name: mask.clone() for name, mask in hook.masks.items()})
        for name, mask in hook.masks.items():
            assert (hook._weights[name][~mask] == 0).all()

    sparsity = dict(init=init, sparsity=0.4, update_interval=1, prune_rate=0.3)
    runner = trained(tmp_path, sparsity, steps=51, watch=watch)
    hook = sparsity_hook(runner)
    assert hook.step == 51
    total = sum(weight.numel() for weight in hook._weights.values())
    live = total - sum(int((~mask).sum()) for mask in hook.masks.values())
    first, last = ({name: int(mask.sum()) for name, mask in masks.items()} for masks in (updates[0], updates[-1]))
    assert first == last
    if init == 'uniform':
        assert all(count == round(0.6 * hook.masks[name].numel()) for name, count in first.items())
    # Layers that come out above 0.99 stay dense, which can only add.
    assert live >= round(0.6 * total) - len(hook.masks)
    assert live <= round(0.6 * total) + 0.01 * total + len(hook.masks)
    # 50 updates: one after each step but the last.
    changed = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(updates)]
    assert changed[:20] == [True] * 20
    assert changed[-1] is False


def test_snip_leaves_no_trace(tmp_path):
    """Norm statistics, gradients, data order and generators are as without it."""
    states = []
    for sparsity in (dict(sparsity=0.4), dict(init='uniform', sparsity=0.4)):
        runner = sparse_runner(tmp_path, sparsity, steps=1)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        sparsity_hook(runner).before_train(runner)
        assert all(parameter.grad is None for parameter in runner.model.parameters())
        generators = torch.rand(1).item(), np.random.rand(), random.random()
        batch = next(runner.train_loop.dataloader_iterator)
        states.append((runner.model.norm.running_mean.tolist(), runner.model.norm.num_batches_tracked.item(),
                       batch['label'].tolist(), *generators))
    assert states[0] == states[1]
    assert states[0][1] == 0


def test_updates_follow_optimizer_steps_not_iterations(tmp_path):
    steps = []
    runner = trained(tmp_path, dict(UNIFORM, update_interval=2), steps=10, optim_wrapper=dict(accumulative_counts=3),
                     watch=lambda runner: steps.append(sparsity_hook(runner).step))
    # MMEngine steps after 3, 6, 9 and, for the remainder, 10 iterations.
    assert steps == [0, 0, 1, 1, 1, 2, 2, 2, 3, 4]
    assert sparsity_hook(runner)._total_steps == 4
    assert sparsity_hook(runner).prune_rate == pytest.approx(0.005)


class SkippingOptimWrapper(OptimWrapper):
    """Skips every other step, as a loss scaler does when a gradient overflows."""

    def step(self, **kwargs):
        if self.inner_count % 2:
            super().step(**kwargs)


def test_skipped_steps_do_not_count(tmp_path):
    runner = trained(tmp_path, UNIFORM, steps=6, optim_wrapper=dict(type=SkippingOptimWrapper))
    assert sparsity_hook(runner).step == 3


@pytest.mark.parametrize('optimizer', [dict(type='SGD', lr=0.1, momentum=0.9), dict(type='AdamW', lr=0.01)])
def test_dead_weights_ema_and_momentum_are_zero_and_adam_is_unchanged(tmp_path, optimizer):
    def watch(runner):
        hook = sparsity_hook(runner)
        for name, mask in hook.masks.items():
            weight = runner.model.get_parameter(name)
            state = runner.optim_wrapper.optimizer.state[weight]
            assert (weight[~mask] == 0).all()
            assert (average_of(runner).get_parameter(name)[~mask] == 0).all()
            assert weight[mask].count_nonzero() > 0
            if 'momentum_buffer' in state:
                assert (state['momentum_buffer'][~mask] == 0).all()
                assert state['momentum_buffer'][mask].count_nonzero() > 0
            else:
                assert state['exp_avg'][~mask].count_nonzero() > 0

    sparsity = dict(UNIFORM, update_interval=3)
    runner = trained(tmp_path, sparsity, steps=8, optimizer=optimizer, ema=True, watch=watch)
    path, dropped, _ = publish_file(str(tmp_path / 'iter_8.pth'), str(tmp_path / 'published.pth'))
    assert dropped == ['dynamic_sparsity', 'ema_state_dict', 'message_hub', 'optimizer', 'param_schedulers']
    published = torch.load(path, weights_only=True)['state_dict']
    saved = torch.load(tmp_path / 'iter_8.pth', weights_only=False)['state_dict']
    assert published.keys() == saved.keys()
    for name, mask in sparsity_hook(runner).masks.items():
        # EMAHook saves the averages as state_dict.
        assert torch.equal(published[name], saved[name])
        assert (published[name][~mask] == 0).all()
        assert not torch.equal(published[name], runner.model.state_dict()[name])


def test_masks_follow_the_seed(tmp_path):
    """Fixed masks, so that only what was drawn at the start can differ."""
    masks = []
    for seed in (0, 0, 1):
        runner = trained(tmp_path, UNIFORM, steps=1, seed=seed)
        masks.append(sparsity_hook(runner).masks['hidden.weight'])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_checkpoint_state_is_plain_and_small(tmp_path):
    trained(tmp_path, dict(UNIFORM, update_interval=4, prune_rate=0.4), steps=10)
    state = torch.load(tmp_path / 'iter_10.pth', weights_only=False)['dynamic_sparsity']
    torch.save(state, tmp_path / 'state.pth')
    state = torch.load(tmp_path / 'state.pth', weights_only=True)
    assert state['step'] == 10
    assert state['prune_rate'] == pytest.approx(0.005)
    assert set(state['masks']) == {'conv.weight', 'hidden.weight', 'head.weight'}
    assert state['masks']['hidden.weight']['bits'].numel() == 16 * 32 // 8
    assert state['masks']['hidden.weight']['shape'] == [32, 16]


def test_updates_are_logged(tmp_path):
    sparsity = dict(UNIFORM, update_interval=4, prune_rate=0.4)
    runner = trained(tmp_path, sparsity, steps=9, log_level='INFO')
    log = Path(runner._log_dir, f'{runner.timestamp}.log').read_text()
    assert 'optimiser step 0: masks of 3 of 3 layers from uniform; prune rate 0.4000; density 0.5000 of 0.00 M' in log
    # cos(pi * 4 / 9): p = 0.2370; 216 + 256 + 64 live weights.
    count = round(0.2368 * 216) + round(0.2368 * 256) + round(0.2368 * 64)
    assert f'optimiser step 4: {count} weights pruned and as many grown; prune rate 0.23' in log
    assert runner.message_hub.get_scalar('train/density').current() == 0.5


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(init='magnitude', sparsity=0.4), "init must be one of .* got 'magnitude'"),
    (dict(), 'sparsity must be in'),
    (dict(sparsity=1.0), 'sparsity must be in .* got 1.0'),
    (dict(init='zeros', sparsity=0.4), 'sparsity must be None'),
    (dict(init='zeros', redraw=True), "redraw must be False with init='zeros'.*got True"),
    (dict(sparsity=0.4, update_interval=0), 'update_interval must be None or a positive int, got 0'),
    (dict(sparsity=0.4, snip_batch_size=-1), 'snip_batch_size must be None or a positive int'),
    (dict(sparsity=0.4, prune_rate=1.5), 'prune_rate must be in'),
    (dict(sparsity=0.4, prune_rate=0.1, final_prune_rate=0.2), 'final_prune_rate must be in .* 0.2 and 0.1'),
    (dict(pattern='4:2', init='magnitude'), "pattern must be 'N:M' with N below M, such as '2:4', got '4:2'"),
    (dict(pattern='0:4', init='magnitude'), "got '0:4'"),
    (dict(pattern=0.5, init='magnitude'), 'got 0.5'),
    (dict(pattern='2:4'), "init must be one of .*'magnitude', 'uniform', 'zeros'.* with a pattern, got 'snip'"),
    (dict(pattern='2:4', init='uniform', sparsity=0.5), 'sparsity must be None with a pattern, 2:4 says it, got 0.5'),
])
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicSparsityHook(**arguments)


def test_snip_batch_size_is_used(tmp_path):
    densities = []
    for size in (None, 1, 40):
        runner = trained(tmp_path, dict(sparsity=0.4, snip_batch_size=size), steps=1)
        densities.append({name: int(mask.sum()) for name, mask in sparsity_hook(runner).masks.items()})
    assert len({str(values) for values in densities}) == 3


@pytest.mark.parametrize(('loop', 'workers', 'seed', 'sparsity'), [
    ('Iter', 0, 0, SNIP), ('Iter', 2, 0, SNIP), ('Epoch', 0, 0, SNIP), ('Epoch', 2, 0, SNIP), ('Iter', 2, None, SNIP),
    ('Epoch', 0, None, SNIP), ('Iter', 0, 0, dict(SNIP, pattern='2:4', init='magnitude', sparsity=None)),
])
def test_stopped_and_resumed_equals_straight(tmp_path, loop, workers, seed, sparsity):
    arguments = dict(sparsity=sparsity, loop=loop, workers=workers, seed=seed, ema=True, interval=7)
    generators = []
    stop = str(tmp_path / 'straight/iter_7.pth')
    for name, resume in (('straight', {}), ('resumed', dict(resume=True, load_from=stop))):
        runner = trained(tmp_path / name, **arguments, **resume)
        numpy_state = np.random.get_state()[1].tolist()
        generators.append((torch.get_rng_state(), numpy_state, random.getstate()))
        # PyTorch takes 10 s to end persistent workers that the garbage collector finds in a cycle.
        runner._train_loop = None
    assert_same(*generators)

    straight, resumed = (
        torch.load(tmp_path / name / 'iter_20.pth', weights_only=False) for name in ('straight', 'resumed'))
    stopped = torch.load(stop, weights_only=False)
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'dynamic_sparsity'):
        assert_same(resumed[part], straight[part], part)
        with pytest.raises(AssertionError):
            assert_same(stopped[part], straight[part], part)
    assert resumed['meta']['iter'] == straight['meta']['iter'] == 20
    assert resumed['meta']['epoch'] == straight['meta']['epoch']


def test_seeded_dataset_is_the_dataset_to_others():
    """Random transforms follow the index's seed; what hooks set reaches the dataset, in workers too."""
    seeded = SeededDataset(dict(type=Images))
    assert len(seeded) == len(seeded.labels) == 40
    first, again, other = (seeded[SeededIndex(3, seed)]['image'] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    seeded.labels = seeded.labels + 10
    for copied in (seeded, pickle.loads(pickle.dumps(seeded))):
        assert copied[3]['label'] >= 10
        assert copied.dataset.labels.min() >= 10
    index = pickle.loads(pickle.dumps(SeededIndex(3, 1)))
    assert (index, index.seed) == (3, 1)


def test_resuming_without_masks_or_with_others_is_refused(tmp_path):
    trained(tmp_path, steps=2)
    path = str(tmp_path / 'iter_2.pth')
    with pytest.raises(ValueError, match='the checkpoint has no masks'):
        trained(tmp_path, dict(sparsity=0.4), steps=4, resume=True, load_from=path)
    trained(tmp_path, UNIFORM, steps=2)
    with pytest.raises(ValueError, match='a mask of shape .* for hidden.weight, whose shape is now None'):
        trained(tmp_path, dict(UNIFORM, exclude='hidden'), steps=4, resume=True, load_from=path)
