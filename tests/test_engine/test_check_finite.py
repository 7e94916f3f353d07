"""NaN planted in the middle of a PeLK stops training with the names of layer, losses, parameters and images."""

import itertools
import re

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from torch import nn

from pelk_mm.engine import CheckFiniteHook
from pelk_mm.engine.nan_tracing import image_paths
from pelk_mm.testing.processes import run_ranks

from . import small_runs
from .small_runs import (
    BLOCK,
    INF,
    NAN,
    BadBackward,
    Shift,
    TwoLosses,
    all_finite,
    replace_act,
    set_weight,
    shift_loss,
    spoil_gamma,
    stopped,
    watched_runner,
)

pytestmark = pytest.mark.slow


def test_a_bad_weight_is_named_with_its_layer(tmp_path):
    message = stopped(watched_runner(tmp_path, set_weight(NAN)))
    assert message.splitlines()[:5] == [
        'Training stopped in iteration 3 (epoch 1): a gradient is not finite.',
        f'  first: what {BLOCK}.pointwise_conv1 (Linear) returns',
        '  losses: loss_cls, loss_aux',
        f'  weights: {BLOCK}.pointwise_conv1.weight',
        '  images: images/8.png, images/9.png, images/10.png, images/11.png',
    ]
    assert f'The checkpoints in {tmp_path} are from before' in message
    # None of the iteration that failed.
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_1.pth', 'iter_2.pth']


@pytest.mark.parametrize(('meddle', 'kwargs', 'words'), [
    (None, dict(broken=6),
     ['iteration 2 ', '\n  first: the images as they were loaded\n', '\n  images: images/6.png\n']),
    # Values overflow in a layer.
    (replace_act(Shift(INF, first=3)), {},
     [f'\n  first: what {BLOCK}.act (Shift) returns\n', '\n  images: images/11.png\n']),
    (shift_loss, {}, ['iteration 3 (epoch 1): a loss is not finite.\n  losses: loss_shift\n',
                      '\n  logged: loss, loss_shift\n']),
    # Accumulated gradients are checked when they are used.
    (spoil_gamma, dict(iteration=0, optim_wrapper=dict(accumulative_counts=3)), ['iteration 3 ']),
])
def test_iteration_images_and_losses_are_named(tmp_path, meddle, kwargs, words):
    message = stopped(watched_runner(tmp_path, meddle, **kwargs))
    assert [word for word in words if word not in message] == []
    assert '  weights: ' not in message


def test_only_a_gradient_is_found_before_the_step_spoils_the_weights(tmp_path):
    runner = watched_runner(tmp_path, replace_act(BadBackward()))
    message = stopped(runner)
    assert 'iteration 3 ' in message
    assert (f'\n  first, in the backward pass: what {BLOCK}.act (BadBackward) passes back to {BLOCK}.pointwise_conv1 '
            '(Linear)\n') in message
    names = [name for name, parameter in runner.model.named_parameters() if not all_finite([parameter.grad])]
    assert f'{BLOCK}.pointwise_conv1.weight' in names
    # What lies behind the block has good gradients.
    assert not [name for name in names if name.startswith(('head', f'{BLOCK}.pointwise_conv2'))]
    listing = f'{names[0]}, {names[1]}, {names[2]}, {names[3]}, and {len(names) - 4} more'
    assert f'\n  gradients: {len(names)} of {len(list(runner.model.parameters()))} parameters, {listing}\n' in message
    assert '  losses: ' not in message
    assert all_finite(runner.model.parameters())


def features_of_both_passes(work_dir):
    """Inputs of the head in the iteration that fails, and when it is repeated: finite numbers, after drop path."""
    seen = []

    def meddle(model):
        model.head.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
        spoil_gamma(model)

    message = stopped(watched_runner(work_dir, meddle))
    assert f'\n  gradients: 1 of {len(list(TwoLosses().parameters()))} parameters, {BLOCK}.gamma\n' in message
    assert '\n  between the layers, all was finite when the iteration was repeated\n' in message
    first, second = seen
    assert all_finite(seen)
    return first, second


def test_a_bad_gradient_is_named_as_the_iteration_is_repeated_with_its_random_numbers(tmp_path, monkeypatch):
    first, second = features_of_both_passes(tmp_path)
    assert torch.equal(first, second)
    # With other random numbers drop path drops other branches.
    monkeypatch.setattr('pelk_mm.engine.hooks.check_finite.set_rng_state', lambda state: None)
    first, second = features_of_both_passes(tmp_path)
    assert not torch.equal(first, second)


def test_good_runs_are_not_changed(tmp_path):
    """The accuracy may be NaN; weights are those of a run without the hook, so no random number was used."""
    weights = []
    for hook in (True, False):
        runner = watched_runner(tmp_path)
        if not hook:
            runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, CheckFiniteHook)]
        runner.train()
        weights.append(runner.model.state_dict())
        assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values()))


class ScalingOptimWrapper(OptimWrapper):
    """Scales the loss and skips steps that overflow as MMEngine's AmpOptimWrapper does, which asks for a GPU."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu')
        self.taken = 0

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        before = self.loss_scaler.get_scale()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()
        self.taken += self.loss_scaler.get_scale() >= before


class Overflow(nn.Module):
    """Identity, whose gradient overflows while the loss scale is above a limit."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        return _Overflow.apply(x, self.limit)


class _Overflow(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, limit):
        ctx.limit = limit
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * INF if gradient.abs().max() > ctx.limit else gradient, None


def test_skipped_steps_are_normal_until_they_never_end(tmp_path):
    scaling = dict(type=ScalingOptimWrapper)
    runner = watched_runner(tmp_path, replace_act(Overflow(10.)), iteration=0, steps=14, optim_wrapper=scaling)
    runner.train()
    assert 0 < runner.optim_wrapper.taken < 12
    meddle, hook = replace_act(BadBackward()), dict(max_skipped_steps=6)
    message = stopped(watched_runner(tmp_path, meddle, iteration=1, steps=20, optim_wrapper=scaling, hook=hook))
    assert 'iteration 7 ' in message
    assert 'the gradients of 6 steps in a row are not finite, down to a loss scale of 1024.\n' in message
    assert f'  first, in the backward pass: what {BLOCK}.act (BadBackward) passes back' in message
    # A loss that is not finite has nothing to do with scaling.
    assert 'iteration 3 ' in stopped(watched_runner(tmp_path, set_weight(NAN), optim_wrapper=scaling))


def test_a_model_that_cannot_be_run_again_stops_with_what_is_known(tmp_path):
    def meddle(model):
        set_weight(NAN)(model)
        forward, calls = model.forward, itertools.count()
        model.forward = lambda *args, **kwargs: forward(*args, **kwargs) if next(calls) == 0 else 1 / 0

    message = stopped(watched_runner(tmp_path, meddle))
    assert f'\n  weights: {BLOCK}.pointwise_conv1.weight\n' in message
    assert '\n  the iteration could not be repeated to find the layer: ZeroDivisionError: division by zero\n' in message


@pytest.mark.parametrize('arguments', [dict(interval=0), dict(max_skipped_steps=0), dict(interval=1.5)])
def test_wrong_arguments_are_refused(arguments):
    (name, value), = arguments.items()
    with pytest.raises(ValueError, match=f'{name} must be a positive int, got {value}'):
        CheckFiniteHook(**arguments)


def test_helpers():
    assert all_finite([torch.full((3, ), 3e38), torch.full((2, ), 6e4, dtype=torch.float16)])
    assert not all_finite([torch.ones(3), torch.tensor([1, -INF])])
    assert not all_finite([torch.tensor([NAN, 1], dtype=torch.bfloat16)])
    sample = BaseDataElement(metainfo=dict(img_path='a.png'))
    assert image_paths(dict(inputs=torch.ones(2), data_samples=[sample, 'text', None])) == ['a.png']


@pytest.mark.parametrize(('kind', 'found'), [
    ('act', f'  first: what {BLOCK}.act (Shift) returns\n  losses: loss_cls, loss_aux\n'),
    ('loss', '  losses: loss_shift\n'),
])
def test_all_processes_stop_together(tmp_path, kind, found):
    ranks = [(rank, tmp_path, kind) for rank in (0, 1)]
    for log in run_ranks(small_runs.__file__, ranks, tmp_path, exit_code=1, modules=small_runs.MODULES):
        message = re.sub(r'^\[rank\d\]: ', '', log, flags=re.MULTILINE).partition('\nFloatingPointError: ')[2]
        assert message.startswith('Training stopped in iteration 3 '), log
        first, second = message.split('\nProcess ')[1:3]
        assert first.startswith('0:\n  between the layers, all was finite when the iteration was repeated\n')
        assert '  images: images/16.png, images/18.png, images/20.png, images/22.png' in first
        assert second.startswith(f'1:\n{found}')
        assert '  images: images/17.png, images/19.png, images/21.png, images/23.png\n' in second
