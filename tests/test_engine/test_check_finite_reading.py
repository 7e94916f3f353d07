"""CheckFiniteHook reads flags in every iteration on the CPU, later on a device, and always before weights are saved."""

import pytest
import torch

from pelk_mm.engine import CheckFiniteHook, polling
from pelk_mm.registry import HOOKS

from .small_runs import (
    BLOCK,
    INF,
    NAN,
    BadBackward,
    On,
    all_finite,
    replace_act,
    set_weight,
    shift_loss,
    spoil_gamma,
    stopped,
    watched_runner,
)

pytestmark = pytest.mark.slow


def test_the_cpu_is_read_in_every_iteration(tmp_path):
    """Nothing waits there, so the interval does not matter."""
    message = stopped(watched_runner(tmp_path, spoil_gamma, hook=dict(interval=5), checkpoint_interval=9))
    assert 'iteration 3 (epoch 1): a gradient is not finite' in message
    assert f'parameters, {BLOCK}.gamma\n' in message


@HOOKS.register_module()
class HookOfADevice(CheckFiniteHook):
    """Reads flags as it does on a GPU."""

    def before_train(self, runner):
        super().before_train(runner)
        self._read_always = False


def run_as_on_a_device(tmp_path, meddle, checkpoint_interval=99, interval=3, **kwargs):
    hook = dict(type=HookOfADevice, interval=interval)
    kwargs.setdefault('steps', 9)
    return watched_runner(tmp_path, meddle, hook=hook, checkpoint_interval=checkpoint_interval, **kwargs)


@pytest.fixture
def steady(monkeypatch):
    """Only the interval counts, however slow this machine is."""
    monkeypatch.setattr(polling, 'MAX_SECONDS', 1e6)


@pytest.mark.parametrize(('meddle', 'words'), [
    (spoil_gamma, ['a gradient is not finite.', f'\n  gradients: 1 of 0 parameters, {BLOCK}.gamma\n']),
    (shift_loss, ['a loss is not finite.', '\n  logged: loss, loss_shift\n']),
])
def test_flags_that_are_read_late_still_name_iteration_images_losses_and_parameters(tmp_path, steady, meddle, words):
    """Asked after iterations 1, 4 and so on; the second one is wrong."""
    runner = run_as_on_a_device(tmp_path, meddle, iteration=1)
    message = stopped(runner)
    assert runner.iter == 3
    assert message.startswith(f'Training stopped in iteration 2 (epoch 1): {words[0]}\n')
    assert words[1].replace(' 0 ', f' {len(list(runner.model.parameters()))} ') in message
    assert '\n  images: images/4.png, images/5.png, images/6.png, images/7.png\n' in message
    assert 'the flags were read 2 iterations later' in message
    assert "dict(type='pelk_mm.CheckFiniteHook', interval=1)" in message
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize(('kwargs', 'iteration'), [
    (dict(interval=1), 2), (dict(interval=50, checkpoint_interval=3), 2), (dict(interval=50, iteration=4, steps=5), 4),
    (dict(interval=3, iteration=3), 3)])
def test_a_layer_is_named_where_the_flags_are_read_in_the_iteration_itself(tmp_path, steady, kwargs, iteration):
    """With interval 1, before a checkpoint, in the last iteration of a training; weights are still good."""
    runner = run_as_on_a_device(tmp_path, replace_act(BadBackward()), **kwargs)
    message = stopped(runner)
    assert runner.iter == iteration
    assert f'\n  first, in the backward pass: what {BLOCK}.act (BadBackward) passes back' in message
    assert all_finite(runner.model.parameters())
    assert not list(tmp_path.glob('*.pth'))


def spoil_the_step(model):
    """Gradients and losses are finite when a step makes weights infinite."""
    model.head.bias.register_hook(lambda gradient: torch.full_like(gradient, 3e38))


def high_rate():
    """A learning rate that makes the third step overflow."""
    return On('before_train_iter', lambda runner: runner.optim_wrapper.optimizer.param_groups[0].update(lr=1e3), 3)


@pytest.mark.parametrize('hook', [dict(), dict(type=HookOfADevice)])
def test_weights_that_a_step_makes_infinite_are_not_saved(tmp_path, hook):
    message = stopped(watched_runner(tmp_path, spoil_the_step, hook=hook, hooks=[high_rate()]))
    assert message.startswith('Training stopped in iteration 3 (epoch 1): a weight is not finite.\n')
    assert '\n  weights: head.bias\n' in message
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_1.pth', 'iter_2.pth']


@pytest.mark.parametrize('hook', [dict(), dict(type=HookOfADevice)])
def test_statistics_that_become_nan_are_not_saved(tmp_path, hook):
    """Losses and gradients stay finite, as where the loss scaler skips the step that overflowed."""

    def spoil(model):
        model.register_buffer('mask', torch.full((2, ), -INF))
        model.register_buffer('running_mean', torch.tensor([0.0, NAN]))

    message = stopped(watched_runner(tmp_path, spoil, hook=hook))
    assert message.startswith('Training stopped in iteration 3 (epoch 1): a buffer is not finite.\n')
    assert '\n  buffers: running_mean\n' in message
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_1.pth', 'iter_2.pth']


def test_weights_are_finite_before_they_are_validated(tmp_path, steady):
    """The best ones of a validation are saved; here one follows the third iteration."""
    validate = On('after_train_iter', lambda runner: runner.call_hook('before_val_epoch'), 3)
    runner = run_as_on_a_device(tmp_path, spoil_the_step, hooks=[high_rate(), validate])
    assert stopped(runner).startswith('Training stopped in iteration 3 (epoch 1): a weight is not finite.\n')


def test_a_checkpoint_of_weights_before_the_first_iteration(tmp_path):
    """Good ones are saved, others are not."""
    save = On('before_train', lambda runner: runner.save_checkpoint(runner.work_dir, 'start.pth'))
    good, bad = (watched_runner(tmp_path, steps=1, hooks=[save]) for _ in range(2))
    set_weight(NAN)(bad.model)
    assert 'a weight is not finite' in stopped(bad)
    assert not (tmp_path / 'start.pth').exists()
    good.train()
    assert (tmp_path / 'start.pth').exists()


def test_whoever_saves_a_checkpoint_saves_none_that_is_not_finite(tmp_path, steady):
    """Another hook may save at any time."""
    save = On('after_train_iter', lambda runner: runner.save_checkpoint(str(tmp_path), f'own_{runner.iter}.pth'))
    assert 'iteration 3 ' in stopped(run_as_on_a_device(tmp_path, spoil_gamma, hooks=[save]))
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['own_0.pth', 'own_1.pth']
