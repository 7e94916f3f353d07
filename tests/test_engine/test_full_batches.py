"""Epochs of full batches only."""

import pytest


@pytest.mark.parametrize('batch_size, steps', [(40, 1), (39, 1), (13, 3)])
def test_fewer_samples_than_a_batch(batch_size, steps, make_runner, tmp_path):
    """Forty samples in full batches."""
    runner = make_runner(tmp_path)
    runner._train_dataloader.update(batch_size=batch_size, drop_last=True)
    assert runner.build_train_loop(runner._train_loop).max_iters == 3 * steps


def test_no_batch_at_all(make_runner, tmp_path):
    runner = make_runner(tmp_path)
    runner._train_dataloader.update(batch_size=41, drop_last=True)
    with pytest.raises(ValueError, match='batch_size is 41, each process has 40 of 40 samples. Set a smaller'):
        runner.train()
    # All that there is, if the last batch is kept.
    runner._train_dataloader.update(drop_last=False)
    assert len(runner.build_train_loop(runner._train_loop).dataloader) == 1
