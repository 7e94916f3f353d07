"""The checkpoint hook keeps what MMEngine's keeps, but removes nothing before what replaces it is there."""

from pathlib import Path

import pytest
from mmengine.hooks import Hook

from pelk_mm.engine import AtomicCheckpointHook
from pelk_mm.registry import HOOKS

SCORES = dict(a=[1, 3, 2], b=[5, 4, 3])
SETTINGS = {
    'epochs': dict(interval=1),
    'newest epoch': dict(interval=1, max_keep_ckpts=1),
    'newest two of iterations': dict(interval=4, by_epoch=False, max_keep_ckpts=2),
    'best': dict(interval=1, max_keep_ckpts=1, save_best='a', rule='greater'),
    'two kinds of best': dict(interval=2, max_keep_ckpts=1, save_best=['a', 'b'], rule=['greater', 'less']),
    'best of iterations': dict(interval=10, by_epoch=False, max_keep_ckpts=1, save_best='b', rule='less'),
    'no last': dict(interval=2, save_last=False),
}


class Watch(Hook):
    """Notes which checkpoints there are whenever one is about to be written."""

    def __init__(self):
        self.seen = []

    def before_save_checkpoint(self, runner, checkpoint):
        pointer = Path(runner.work_dir, 'last_checkpoint')
        self.seen.append((names(runner.work_dir), Path(pointer.read_text()).name if pointer.exists() else None))


def names(folder) -> list:
    return sorted(path.name for path in Path(folder).glob('*.pth'))


@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
def test_in_the_end_the_files_are_mmengines(make_runner, tmp_path, settings):
    results = []
    for kind in ('CheckpointHook', 'pelk_mm.AtomicCheckpointHook'):
        work_dir = tmp_path / kind
        loop = 'pelk_mm.ResumableEpochBasedTrainLoop'
        if not settings.get('by_epoch', True):
            loop = 'pelk_mm.ResumableIterBasedTrainLoop'
        sampler = dict(type='InfiniteSampler') if 'Iter' in loop else dict(type='DefaultSampler', shuffle=True)
        runner = make_runner(work_dir, loop, dict(settings, type=kind), scores=SCORES)
        runner._train_dataloader.sampler = sampler
        runner.train()
        info = runner.message_hub.runtime_info
        results.append((names(work_dir), (work_dir / 'last_checkpoint').read_text().replace(kind, ''),
                        info.get('keep_ckpt_ids'), {key: value for key, value in info.items() if 'score' in key}))
    assert results[0] == results[1]


def test_the_one_that_is_kept_is_there_while_the_next_is_written(make_runner, tmp_path):
    for kind, seen in (('CheckpointHook', []), ('pelk_mm.AtomicCheckpointHook', ['epoch_1.pth'])):
        watch = Watch()
        make_runner(tmp_path / kind, checkpoint=dict(type=kind, interval=1, max_keep_ckpts=1), hooks=[watch]).train()
        assert watch.seen[:2] == [([], None), (seen, 'epoch_1.pth')]
        assert names(tmp_path / kind) == ['epoch_3.pth']


@pytest.mark.parametrize('save_best', ['a', ['a', 'b']])
def test_the_best_is_there_while_the_next_best_is_written(make_runner, tmp_path, save_best):
    watch = Watch()
    checkpoint = dict(
        type='pelk_mm.AtomicCheckpointHook', interval=1, max_keep_ckpts=1, save_best=save_best, rule='greater')
    make_runner(tmp_path, checkpoint=checkpoint, hooks=[watch], scores=SCORES).train()
    assert 'best_a_epoch_1.pth' in next(found for found, pointer in watch.seen if pointer == 'epoch_2.pth')
    assert [name for name in names(tmp_path) if '_a_' in name] == ['best_a_epoch_2.pth']
    assert all(any(name.startswith('epoch') for name in found) for found, pointer in watch.seen[1:])


def test_configs_of_0_1_0_find_it():
    assert HOOKS.get('pelk_mm.WholeCheckpointHook') is HOOKS.get('pelk_mm.AtomicCheckpointHook') is AtomicCheckpointHook
