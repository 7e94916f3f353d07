"""A training that is resumed at its end says so."""

import pytest
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner

from pelk_mm.engine import FinishedRunHook

from .small_runs import On

EPOCHS, ITERS = 'pelk_mm.ResumableEpochBasedTrainLoop', 'pelk_mm.ResumableIterBasedTrainLoop'


def messages_of(make_runner, tmp_path, loop, checkpoint, file, **kwargs):
    """The messages when training goes on from a file, and the number of steps that it makes."""
    checkpoint, count, messages = dict(type='pelk_mm.AtomicCheckpointHook', **checkpoint), On('after_train_iter'), []
    make_runner(tmp_path, loop, checkpoint).train()
    hooks = [FinishedRunHook(), count]
    runner = make_runner(tmp_path, loop, checkpoint, hooks, load_from=str(tmp_path / file), resume=True, **kwargs)
    runner.logger.info = messages.append
    runner.train()
    return [message for message in messages if 'This training is finished' in message], count.calls


@pytest.mark.parametrize('cls', [Runner, FlexibleRunner])
@pytest.mark.parametrize(('loop', 'checkpoint', 'file', 'limit'), [
    (EPOCHS, dict(interval=1), 'epoch_3.pth', 'max_epochs is 3'),
    (EPOCHS, dict(interval=10, by_epoch=False), 'iter_30.pth', 'max_epochs is 3'),
    (ITERS, dict(interval=15, by_epoch=False), 'iter_30.pth', 'max_iters is 30'),
    ('EpochBasedTrainLoop', dict(interval=1), 'epoch_3.pth', 'max_epochs is 3'),
    ('IterBasedTrainLoop', dict(interval=15, by_epoch=False), 'iter_30.pth', 'max_iters is 30'),
])
def test_finished(make_runner, tmp_path, loop, checkpoint, file, limit, cls):
    (message, ), steps = messages_of(make_runner, tmp_path, loop, checkpoint, file, cls=cls)
    assert message.startswith(f'This training is finished: {tmp_path}/{file} was saved after iteration 30, and ')
    assert limit in message
    assert steps == 0


@pytest.mark.parametrize(('loop', 'checkpoint', 'file', 'left'), [
    (EPOCHS, dict(interval=1), 'epoch_2.pth', 10),
    (EPOCHS, dict(interval=29, by_epoch=False), 'iter_29.pth', 1),
    (ITERS, dict(interval=29, by_epoch=False), 'iter_29.pth', 1),
    # MMEngine's own loop starts the epoch again.
    ('EpochBasedTrainLoop', dict(interval=29, by_epoch=False), 'iter_29.pth', 10),
])
def test_not_finished(make_runner, tmp_path, loop, checkpoint, file, left):
    assert messages_of(make_runner, tmp_path, loop, checkpoint, file) == ([], left)
