"""NaN planted in the middle of a PeLK stops training with the names of layer, losses, parameters and images.

Run as a script it is one rank of the distributed test.
"""

import itertools
import os
import re
import sys

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

from pelk_mm.compat import setup
from pelk_mm.engine import CheckFiniteHook, polling
from pelk_mm.engine.nan_tracing import all_finite, image_paths, listed
from pelk_mm.models import PeLK
from pelk_mm.registry import HOOKS
from pelk_mm.testing.processes import run_ranks

pytestmark = pytest.mark.slow

RUN_NAMES = itertools.count()
# The block that NaN is planted in.
BLOCK = 'backbone.stages.1.blocks.1'
NAN, INF = float('nan'), float('inf')


class Images(Dataset):
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


class Net(BaseModel):
    """A small PeLK with two losses, dropout among its layers."""

    def __init__(self):
        super().__init__()
        sizes = dict(channels=[8, 16, 16, 16], kernel_sizes=[13, 9, 7, 5])
        self.backbone = PeLK('pico', **sizes, drop_path_rate=0.2, layer_scale_init_value=1.0)
        self.head = nn.Linear(self.backbone.channels[-1], 4)

    def forward(self, inputs, data_samples, mode='loss'):
        scores = self.head(self.backbone(torch.stack(inputs))[0])
        return dict(loss_cls=scores.square().mean(), loss_aux=scores.abs().mean(), acc=scores.new_tensor(NAN))


class Meddle(Hook):
    """Calls a function with the model before iteration number ``iteration`` (from 0 on)."""

    def __init__(self, iteration, function):
        self.iteration, self.function = iteration, function

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            model = runner.model
            self.function(model.module if hasattr(model, 'module') else model)


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


def make_runner(work_dir,
                meddle=None,
                iteration=2,
                steps=4,
                broken=None,
                optim_wrapper=None,
                hook=None,
                checkpoint_interval=1,
                **kwargs):
    setup()
    torch.manual_seed(0)
    custom_hooks = [dict(dict(type='pelk_mm.CheckFiniteHook'), **(hook or {}))]
    if meddle:
        custom_hooks.append(Meddle(iteration, meddle))
    return Runner(
        model=Net(),
        work_dir=str(work_dir),
        experiment_name=f'finite{next(RUN_NAMES)}',
        train_dataloader=ConfigDict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            dataset=dict(type=Images, broken=broken)),
        train_cfg=dict(by_epoch=False, max_iters=steps),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01), **(optim_wrapper or {})),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=checkpoint_interval)),
        custom_hooks=custom_hooks,
        randomness=dict(seed=0),
        log_level='ERROR',
        default_scope='mmengine',
        **kwargs)


def stopped(runner) -> str:
    """The message of the error that stops the run."""
    with pytest.raises(FloatingPointError) as error:
        runner.train()
    return str(error.value)


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


def test_a_bad_weight_is_named_with_its_layer(tmp_path):
    message = stopped(make_runner(tmp_path, set_weight(NAN)))
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


def test_a_bad_image_is_named(tmp_path):
    message = stopped(make_runner(tmp_path, broken=6))
    assert 'iteration 2 ' in message
    assert '\n  first: the images as they were loaded\n' in message
    assert '\n  images: images/6.png\n' in message
    assert '  weights: ' not in message


def test_the_image_is_named_whose_values_overflow_in_a_layer(tmp_path):
    message = stopped(make_runner(tmp_path, replace_act(Shift(INF, first=3))))
    assert f'\n  first: what {BLOCK}.act (Shift) returns\n' in message
    assert '\n  images: images/11.png\n' in message


def test_only_a_gradient_is_found_before_the_step_spoils_the_weights(tmp_path):
    runner = make_runner(tmp_path, replace_act(BadBackward()))
    message = stopped(runner)
    assert 'iteration 3 ' in message
    assert (f'\n  first, in the backward pass: what {BLOCK}.act (BadBackward) passes back to {BLOCK}.pointwise_conv1 '
            '(Linear)\n') in message
    names = [name for name, parameter in runner.model.named_parameters() if not all_finite([parameter.grad])]
    assert f'{BLOCK}.pointwise_conv1.weight' in names
    # What lies behind the block has good gradients.
    assert not [name for name in names if name.startswith(('head', f'{BLOCK}.pointwise_conv2'))]
    listing = f'{names[0]}, {names[1]}, {names[2]}, {names[3]} and {len(names) - 4} more'
    assert f'\n  gradients: {len(names)} of {len(list(runner.model.parameters()))} parameters, {listing}\n' in message
    assert '  losses: ' not in message
    assert all_finite(runner.model.parameters())


def spoil_gamma(model):
    """A gradient that is not finite only where a weight takes it."""
    block_of(model).gamma.register_hook(lambda gradient: gradient * NAN)


def test_a_gradient_of_one_weight_is_named(tmp_path):
    message = stopped(make_runner(tmp_path, spoil_gamma))
    assert f'\n  gradients: 1 of {len(list(Net().parameters()))} parameters, {BLOCK}.gamma\n' in message
    assert '\n  between the layers, all was finite when the iteration was repeated\n' in message


def shift_loss(model):
    """One more loss, infinite; its gradient is zero, so that nothing else shows it."""
    model.register_forward_hook(lambda module, args, losses: dict(losses, loss_shift=torch.tensor(INF)))


def test_only_a_loss_is_found(tmp_path):
    message = stopped(make_runner(tmp_path, shift_loss))
    assert 'iteration 3 (epoch 1): a loss is not finite.\n  losses: loss_shift\n' in message
    assert '\n  logged: loss, loss_shift\n' in message


def features_of_both_passes(work_dir):
    """Inputs of the head in the iteration that fails, and when it is repeated: finite numbers, after drop path."""
    seen = []

    def meddle(model):
        model.head.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
        spoil_gamma(model)

    assert f'parameters, {BLOCK}.gamma\n' in stopped(make_runner(work_dir, meddle))
    first, second = seen
    assert all_finite(seen)
    return first, second


def test_the_iteration_is_repeated_with_its_random_numbers(tmp_path, monkeypatch):
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
        runner = make_runner(tmp_path)
        if not hook:
            runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, CheckFiniteHook)]
        runner.train()
        weights.append(runner.model.state_dict())
        assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values()))


def test_the_cpu_is_read_in_every_iteration(tmp_path):
    """Nothing waits there, so the interval does not matter."""
    message = stopped(make_runner(tmp_path, spoil_gamma, hook=dict(interval=5), checkpoint_interval=9))
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
    return make_runner(tmp_path, meddle, hook=hook, checkpoint_interval=checkpoint_interval, **kwargs)


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


class HighRate(Hook):
    """A learning rate that makes the step overflow."""

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 2:
            runner.optim_wrapper.optimizer.param_groups[0]['lr'] = 1e3


@pytest.mark.parametrize('hook', [dict(), dict(type=HookOfADevice)])
def test_weights_that_a_step_makes_infinite_are_not_saved(tmp_path, hook):
    runner = make_runner(tmp_path, spoil_the_step, hook=hook)
    runner.register_hook(HighRate())
    message = stopped(runner)
    assert message.startswith('Training stopped in iteration 3 (epoch 1): a weight is not finite.\n')
    assert '\n  weights: head.bias\n' in message
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_1.pth', 'iter_2.pth']


class Validate(Hook):
    """Validates after the third iteration, as an iteration-based loop does."""

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 2:
            runner.call_hook('before_val_epoch')


def test_weights_are_finite_before_they_are_validated(tmp_path, steady):
    """The best ones of a validation are saved."""
    runner = run_as_on_a_device(tmp_path, spoil_the_step)
    runner.register_hook(HighRate())
    runner.register_hook(Validate())
    assert stopped(runner).startswith('Training stopped in iteration 3 (epoch 1): a weight is not finite.\n')


def test_a_checkpoint_of_weights_before_the_first_iteration(tmp_path):
    """Good ones are saved, others are not."""

    class Save(Hook):
        priority = 'LOWEST'

        def before_train(self, runner):
            runner.save_checkpoint(str(tmp_path), 'start.pth')

    good, bad = make_runner(tmp_path, steps=1), make_runner(tmp_path, steps=1)
    for runner in (good, bad):
        runner.register_hook(Save())
    set_weight(NAN)(bad.model)
    assert 'a weight is not finite' in stopped(bad)
    assert not (tmp_path / 'start.pth').exists()
    good.train()
    assert (tmp_path / 'start.pth').exists()


def test_whoever_saves_a_checkpoint_saves_none_that_is_not_finite(tmp_path, steady):
    """Another hook may save at any time."""

    class Save(Hook):

        def after_train_iter(self, runner, *args, **kwargs):
            runner.save_checkpoint(str(tmp_path), f'own_{runner.iter}.pth')

    runner = run_as_on_a_device(tmp_path, spoil_gamma)
    runner.register_hook(Save())
    assert 'iteration 3 ' in stopped(runner)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['own_0.pth', 'own_1.pth']


def test_accumulated_gradients_are_checked_when_they_are_used(tmp_path):
    message = stopped(make_runner(tmp_path, spoil_gamma, iteration=0, optim_wrapper=dict(accumulative_counts=3)))
    assert 'iteration 3 ' in message


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
    runner = make_runner(tmp_path, replace_act(Overflow(10.)), iteration=0, steps=14, optim_wrapper=scaling)
    runner.train()
    assert 0 < runner.optim_wrapper.taken < 12
    meddle, hook = replace_act(BadBackward()), dict(max_skipped_steps=6)
    message = stopped(make_runner(tmp_path, meddle, iteration=1, steps=20, optim_wrapper=scaling, hook=hook))
    assert 'iteration 7 ' in message
    assert 'the gradients of 6 steps in a row are not finite, down to a loss scale of 1024.\n' in message
    assert f'  first, in the backward pass: what {BLOCK}.act (BadBackward) passes back' in message
    # A loss that is not finite has nothing to do with scaling.
    assert 'iteration 3 ' in stopped(make_runner(tmp_path, set_weight(NAN), optim_wrapper=scaling))


def test_a_model_that_cannot_be_run_again_stops_with_what_is_known(tmp_path):
    def meddle(model):
        set_weight(NAN)(model)
        forward, calls = model.forward, itertools.count()
        model.forward = lambda *args, **kwargs: forward(*args, **kwargs) if next(calls) == 0 else 1 / 0

    message = stopped(make_runner(tmp_path, meddle))
    assert f'\n  weights: {BLOCK}.pointwise_conv1.weight\n' in message
    assert '\n  the iteration could not be repeated to find the layer: ZeroDivisionError: division by zero\n' in message


@pytest.mark.parametrize('arguments', [dict(interval=0), dict(max_skipped_steps=0), dict(interval=1.5)])
def test_wrong_arguments_are_refused(arguments):
    (name, value), = arguments.items()
    with pytest.raises(ValueError, match=f'{name} must be a positive int, got {value}'):
        CheckFiniteHook(**arguments)


def test_helpers():
    assert all_finite([])
    assert all_finite([torch.full((3, ), 3e38), torch.full((2, ), 6e4, dtype=torch.float16)])
    assert not all_finite([torch.ones(3), torch.tensor([1, -INF])])
    assert not all_finite([torch.tensor([NAN, 1], dtype=torch.bfloat16)])
    assert listed(list('abcde'), 3) == 'a, b, c and 2 more'
    sample = BaseDataElement(metainfo=dict(img_path='a.png'))
    assert image_paths(dict(inputs=torch.ones(2), data_samples=[sample, 'text', None])) == ['a.png']


# ---- two ranks

def train_one_rank(rank, work_dir, kind):
    """Only rank 1 has something that is not finite."""
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', f'file://{work_dir}/store', rank=rank, world_size=2)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    meddle = dict(act=replace_act(Shift(NAN)), loss=shift_loss)[kind] if rank else None
    make_runner(work_dir, meddle, launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper)).train()


@pytest.mark.parametrize(('kind', 'found'), [
    ('act', f'  first: what {BLOCK}.act (Shift) returns\n  losses: loss_cls, loss_aux\n'),
    ('loss', '  losses: loss_shift\n'),
])
def test_all_processes_stop_together(tmp_path, kind, found):
    for log in run_ranks(__file__, [(rank, tmp_path, kind) for rank in (0, 1)], tmp_path, exit_code=1):
        message = re.sub(r'^\[rank\d\]: ', '', log, flags=re.MULTILINE).partition('\nFloatingPointError: ')[2]
        assert message.startswith('Training stopped in iteration 3 '), log
        first, second = message.split('\nProcess ')[1:3]
        assert first.startswith('0:\n  between the layers, all was finite when the iteration was repeated\n')
        assert '  images: images/16.png, images/18.png, images/20.png, images/22.png' in first
        assert second.startswith(f'1:\n{found}')
        assert '  images: images/17.png, images/19.png, images/21.png, images/23.png\n' in second


if __name__ == '__main__':
    train_one_rank(int(sys.argv[1]), *sys.argv[2:])
