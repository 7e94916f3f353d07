"""SIGTERM in this process: what is saved where, and that training goes on from it exactly."""

import multiprocessing
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner

from pelk_mm.checkpoints.loading import safe_load
from pelk_mm.engine import PreemptionHook, polling
from pelk_mm.engine.hooks import preemption

from ..helpers.equality import assert_same
from .small_runs import On

CHECKPOINT = dict(type='pelk_mm.AtomicCheckpointHook', interval=2)


@pytest.fixture(autouse=True)
def handler():
    """Puts back what SIGTERM did before."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def send(method, number):
    """A hook that sends SIGTERM in the n-th call of one of its methods."""
    return On(method, lambda runner: signal.raise_signal(signal.SIGTERM), number)


def stop(runner) -> tuple:
    """Train until it stops; the warning, and what was saved."""
    messages = []
    runner.logger.warning = messages.append
    with pytest.raises(SystemExit) as error:
        runner.train()
    assert error.value.code == 75
    saved = Path(runner.work_dir, 'last_checkpoint')
    return messages[-1], Path(saved.read_text()).name if saved.exists() else None


@pytest.fixture
def stop_at(make_runner, tmp_path):
    """Train until SIGTERM comes before the n-th call of a method; returns what :func:`stop` does."""

    def stop_at(count, method='before_train_iter', hooks=(), **kwargs):
        hooks = [*hooks, PreemptionHook(), send(method, count)]
        return stop(make_runner(tmp_path, **{'checkpoint': CHECKPOINT, 'hooks': hooks, **kwargs}))

    return stop_at


def state(path) -> dict:
    """Every tensor of a checkpoint that matters to training."""
    content = safe_load(str(path), 'cpu')
    tensors = dict(content['state_dict'], **content.get('ema_state_dict', {}))
    for index, entry in content['optimizer']['state'].items():
        tensors.update({f'{index}.{name}': value for name, value in entry.items()})
    return tensors


@pytest.mark.parametrize(('step', 'epoch'), [(3, 0), (10, 0), (11, 1), (20, 1), (29, 2)])
def test_training_goes_on_exactly_within_an_epoch_and_from_its_last_step(make_runner, stop_at, tmp_path, step, epoch):
    scheduler = dict(type='ExponentialLR', gamma=0.5)
    make_runner(tmp_path / 'whole', checkpoint=CHECKPOINT, param_scheduler=scheduler).train()
    message, saved = stop_at(step, param_scheduler=scheduler)
    assert saved == f'epoch_{epoch}_iter_{step}.pth'
    assert message == (f'SIGTERM: training stops after iteration {step}. {tmp_path}/{saved} is saved. Go on with '
                       '--resume. Exit code 75')
    make_runner(tmp_path, checkpoint=CHECKPOINT, param_scheduler=scheduler, resume=True).train()
    assert_same(state(tmp_path / 'epoch_3.pth'), state(tmp_path / 'whole/epoch_3.pth'))


@pytest.mark.parametrize(('method', 'count', 'saved', 'step'), [
    ('before_train_iter', 13, 'epoch_1_iter_13.pth', 13),
    ('before_val_iter', 2, 'epoch_1.pth', 10),
])
def test_flexible_runner_stores_where_it_stopped(stop_at, tmp_path, method, count, saved, step):
    assert stop_at(count, method, scores=dict(a=[1, 2, 3]), cls=FlexibleRunner)[1] == saved
    meta = safe_load(str(tmp_path / saved), 'cpu')['meta']
    assert (meta['epoch'], meta['iter']) == (1, step)


def test_a_checkpoint_of_this_step_is_not_written_again(stop_at, tmp_path):
    writes = On('before_save_checkpoint')
    checkpoint = dict(CHECKPOINT, by_epoch=False, interval=6, max_keep_ckpts=1)
    assert stop_at(12, hooks=[writes], checkpoint=checkpoint)[1] == 'iter_12.pth'
    assert writes.calls == 2
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_12.pth']


def test_validation_is_left_with_the_trained_weights_not_their_average(make_runner, stop_at, tmp_path):
    ema = dict(type='EMAHook', momentum=0.3)
    make_runner(tmp_path / 'whole', checkpoint=dict(CHECKPOINT, interval=1), hooks=[ema]).train()
    # Ten iterations of validation; the signal comes in the second of the first.
    _, saved = stop_at(2, 'before_val_iter', [ema], scores=dict(a=[1, 2, 3]))
    assert saved == 'epoch_1.pth'
    expected = state(tmp_path / 'whole/epoch_1.pth')
    assert not torch.equal(expected['head.weight'], expected['module.head.weight'])
    assert_same(state(tmp_path / saved), expected)


def test_loaders_of_a_validation_outlive_a_signal_to_the_process_group(make_runner, tmp_path):

    def send_to_workers(runner):
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        subprocess.run(['kill', '-TERM', *(str(worker.pid) for worker in workers)], check=True)

    hooks = [PreemptionHook(), On('before_val_iter', send_to_workers, 2), send('before_val_iter', 5)]
    runner = make_runner(tmp_path, checkpoint=CHECKPOINT, hooks=hooks, scores=dict(a=[1, 2, 3]))
    runner._val_dataloader.update(num_workers=2)
    assert stop(runner)[1] == 'epoch_1.pth'


@pytest.mark.parametrize(('options', 'saved', 'words'), [
    # Gradients that wait for the optimiser are not lost.
    (dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=3)), 'epoch_0_iter_6.pth', ''),
    (dict(loop='EpochBasedTrainLoop'), 'epoch_0_iter_4.pth',
     "epoch_0_iter_4.pth is saved, but MMEngine's loop will start its epoch again"),
    (dict(checkpoint=None), None, 'Nothing is saved, as the config has no checkpoint hook'),
])
def test_the_message_says_what_is_saved(stop_at, options, saved, words):
    message, name = stop_at(4, **options)
    assert name == saved
    assert words in message


def test_after_training_sigterm_does_what_it_did(make_runner, tmp_path, handler):
    make_runner(tmp_path, checkpoint=CHECKPOINT, hooks=[PreemptionHook()], scores=dict(a=[1, 2, 3])).train()
    assert signal.getsignal(signal.SIGTERM) == handler


def fail(runner):
    raise ArithmeticError('a fault')


@pytest.mark.parametrize('cls', [Runner, FlexibleRunner])
@pytest.mark.parametrize(('method', 'number'), [('before_train_iter', 4), ('after_val_iter', 2)])
@pytest.mark.parametrize('before', [signal.SIG_DFL, signal.SIG_IGN, print])
def test_after_failed_training_sigterm_does_what_it_did(make_runner, tmp_path, cls, method, number, before):
    signal.signal(signal.SIGTERM, before)
    hooks = [PreemptionHook(), On(method, fail, number)]
    runner = make_runner(tmp_path, checkpoint=CHECKPOINT, hooks=hooks, scores=dict(a=[1]), cls=cls)
    with pytest.raises(ArithmeticError):
        runner.train()
    assert signal.getsignal(signal.SIGTERM) == before
    # Nothing is left that refers to itself and is ended only by the garbage collector.
    assert 'run' not in vars(runner.train_loop)


def test_once_stopped_a_late_sigterm_does_what_it_did(make_runner, tmp_path, monkeypatch):
    got = []
    signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    hook = PreemptionHook()
    stop(make_runner(tmp_path, checkpoint=CHECKPOINT, hooks=[hook, send('before_train_iter', 4)]))
    # Whoever has asked this process asks once more when the others end.
    signal.raise_signal(signal.SIGTERM)
    assert got == []
    hook._asked_at -= preemption.SAME_REQUEST_SECONDS
    signal.raise_signal(signal.SIGTERM)
    assert got == [signal.SIGTERM]


def in_a_thread(function):
    """Call it, and return what it raised."""
    raised = []

    def call():
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised


@pytest.mark.parametrize('cls', [Runner, FlexibleRunner])
def test_in_a_thread_training_ends_as_in_the_main_one_and_signals_stay(make_runner, tmp_path, cls, handler):
    make_runner(tmp_path / 'main', checkpoint=CHECKPOINT).train()
    runner = make_runner(tmp_path / 'thread', checkpoint=CHECKPOINT, hooks=[PreemptionHook()], cls=cls)
    assert in_a_thread(runner.train) == []
    assert signal.getsignal(signal.SIGTERM) == handler
    if cls is Runner:
        assert_same(state(tmp_path / 'thread/epoch_3.pth'), state(tmp_path / 'main/epoch_3.pth'))


def test_in_a_thread_training_stops_when_another_process_is_asked(make_runner, tmp_path, monkeypatch):
    asked = iter([0, 0, 1])
    monkeypatch.setattr(preemption.dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(polling.dist, 'all_reduce', lambda values, operation: values[:1].fill_(next(asked)))
    runner = make_runner(tmp_path, checkpoint=CHECKPOINT, hooks=[PreemptionHook(interval=1)])
    error, = in_a_thread(runner.train)
    assert (type(error), error.code) == (SystemExit, 75)
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_0_iter_3.pth']


def test_a_second_sigterm_ends_at_once_unless_it_is_the_first_handed_on(monkeypatch):
    now, sent = [100.0], []
    monkeypatch.setattr(preemption.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(preemption.signal, 'raise_signal', sent.append)
    hook = PreemptionHook()
    for seconds in (0, 1, 3.9):
        now[0] += seconds
        hook._on_signal(signal.SIGTERM, None)
    assert sent == []
    now[0] += 0.2
    hook._on_signal(signal.SIGTERM, None)
    assert sent == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
