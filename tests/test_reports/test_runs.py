"""Reading work directories, and the commands that make runs again."""

import json

import pytest
from mmengine.config import Config, DictAction

from pelk_mm.engine.launch import load_config
from pelk_mm.engine.runners import add_own_hooks
from pelk_mm.reports import Entry, Run, find_runs
from pelk_mm.reports.commands import command_of
from pelk_mm.reports.run_files import read_dumped_config

from .run_writer import epochs, write_start

DIGITS = 'configs/digits/pelk-atto_1xb64_digits.py'


@pytest.fixture
def config(digits):
    return dict(digits, train_cfg=dict(digits['train_cfg'], max_epochs=3))


def test_a_dumped_config_is_read_without_running_it(tmp_path, digits):
    Config(digits).dump(tmp_path / 'config.py')
    assert Config(read_dumped_config(tmp_path / 'config.py')).pretty_text == Config(digits).pretty_text
    plain = "a = dict({'b.c': 1}, d=(-2, [inf]))\ne = None\n"
    (tmp_path / 'plain.py').write_text(plain)
    assert read_dumped_config(tmp_path / 'plain.py') == dict(a={'b.c': 1, 'd': (-2, [float('inf')])}, e=None)
    proof = tmp_path / 'ran'
    for code in (f'open({str(proof)!r}, "w")', f'a = open({str(proof)!r}, "w")', 'a = dict(b=[exec("x = 1")])',
                 'a = (', 'a = dict(1)', 'a = dict(**{})'):
        (tmp_path / 'bad.py').write_text(code)
        with pytest.raises(ValueError, match='is not a config as MMEngine dumps it: .*line 1'):
            read_dumped_config(tmp_path / 'bad.py')
    assert not proof.exists()


def test_a_training(tmp_path, config):
    write_start(tmp_path / 'run', 'mine', config, epochs(80.0, 90.0, 95.5), seed=42, launcher='pytorch', processes=2)
    (run, ), problems = find_runs([tmp_path])
    assert problems == []
    assert (run.name, run.metrics, run.progress, run.is_finished) == ('mine', dict(top1=95.5), (3, 3), True)
    assert run.measured == 'validation at epoch 3'
    assert run.environment == dict(Python='3.11.7', PyTorch='2.11.0+cu130', MMEngine='0.10.12', GPU='NVIDIA A100',
                                   seed='42', processes='2', launcher='pytorch')


def test_a_training_that_was_stopped_and_resumed(tmp_path, config):
    write_start(tmp_path, 'mine', config, epochs(80.0))
    (run, ), _ = find_runs([tmp_path])
    assert (run.progress, run.is_finished) == ((1, 3), False)
    write_start(tmp_path, 'mine', config, epochs(91.0, 92.0, start=2), time='20261122_020000')
    (run, ), _ = find_runs([tmp_path])
    assert (run.progress, run.is_finished, run.metrics) == ((3, 3), True, dict(top1=92.0))


def test_iterations_and_factors_to_per_cent(tmp_path):
    records = [{'mIoU': 47.5, 'step': 100},
               {'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.25, 'coco/bbox_mAP_50': 0.9, 'step': 100}]
    write_start(tmp_path, 'mine', dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=100)), records)
    (run, ), _ = find_runs([tmp_path])
    assert run.metrics == dict(ap_box=50.0, ap_mask=25.0)
    assert (run.unit, run.progress) == ('iteration', (100, 100))


@pytest.mark.parametrize('place', ['training', 'training/test_abc', 'other'])
def test_a_test_counts_for_the_run_that_it_is_of(tmp_path, config, place):
    folder, tested = tmp_path / 'training', tmp_path / place
    write_start(folder, 'mine', config, epochs(80.0, 90.0, 95.5))
    write_start(tested, 'mine', dict(config, load_from=str(folder / 'epoch_3.pth')), time='20261122_030000',
                test={'accuracy/top1': 95.25, 'time': 0.1})
    (run, ), problems = find_runs([tmp_path])
    assert problems == []
    assert (run.metrics, run.measured) == (dict(top1=95.25), 'test of epoch_3.pth')
    assert run.source == tested / '20261122_030000' / '20261122_030000.json'


@pytest.mark.parametrize(('time', 'metrics', 'progress'), [('20261122_030000', 90.0, (2, 3)),
                                                           ('20261121_000000', 95.5, (3, 3))])
def test_a_test_of_an_earlier_checkpoint(tmp_path, config, time, metrics, progress):
    """It makes the run unfinished, unless the training went on after it."""
    write_start(tmp_path, 'mine', config, epochs(80.0, 90.0, 95.5))
    write_start(tmp_path, 'mine', dict(config, load_from='epoch_2.pth'), time=time, test={'accuracy/top1': 90.0})
    (run, ), _ = find_runs([tmp_path])
    assert (run.metrics['top1'], run.progress, run.is_finished) == (metrics, progress, progress == (3, 3))


def test_a_test_without_its_training(tmp_path, config):
    write_start(tmp_path, 'mine', dict(config, load_from='/weights/best.pth'), test={'accuracy/top1': 88.0})
    (run, ), _ = find_runs([tmp_path])
    assert run.is_finished
    assert command_of(run, None, tmp_path)[0].endswith('mine.py /weights/best.pth')


def test_broken_files_are_named_and_the_rest_is_read(tmp_path, config):
    good = write_start(tmp_path / 'a', 'mine', config, epochs(80.0, 90.0))
    with open(good / 'vis_data' / 'scalars.json', 'a') as file:
        file.write('[1, 2]\n' + json.dumps({'accuracy/top1': 93.0, 'step': 3}) + '\n{"accuracy/top1": 95.2857')
    empty = write_start(tmp_path / 'b', 'mine', config)
    (empty / 'vis_data' / 'scalars.json').unlink()
    code = write_start(tmp_path / 'c', 'mine', config, epochs(99.0))
    (code / 'vis_data' / 'config.py').write_text('import os\n')
    half = write_start(tmp_path / 'd', 'mine', config, test={'accuracy/top1': 1.0})
    (half / f'{half.name}.json').write_text('{"accuracy/top1": 9')
    nan = write_start(tmp_path / 'e', 'mine', config, test={'accuracy/top1': float('nan')})
    nothing = write_start(tmp_path / 'f', 'mine', config, epochs(99.0))
    (nothing / 'vis_data' / 'config.py').unlink()
    augmented = write_start(tmp_path / 'g', 'mine', dict(config, model=dict(module=1)), test={'accuracy/top1': 1.0})
    runs, problems = find_runs([tmp_path])
    assert [(run.folder.name, run.metrics) for run in runs] == [('a', dict(top1=93.0)), ('b', {})]
    found = dict(problems)
    for where, text in (
            (f'{good}/vis_data/scalars.json, line 5', 'must be an object, got list'),
            (f'{good}/vis_data/scalars.json, line 7', 'is broken or half-written'),
            (f'{empty}', 'stopped before it logged anything'),
            (f'{code}/vis_data/config.py', 'line 1 is not an assignment'),
            (f'{half}/{half.name}.json', 'is broken or half-written'),
            (f'{nan}/{nan.name}.json', 'has no metric of top1, miou'),
            (f'{nothing}/vis_data/config.py', 'is missing'),
            (f'{augmented}/vis_data/config.py', 'test-time augmentation')):
        assert text in found.pop(where)
    assert found == {}


def test_the_hash_is_of_the_experiment_not_of_the_run(config):

    def digest(**changes):
        return Run(None, 'mine', dict(config, **changes)).hash

    assert digest(work_dir='a', randomness=dict(seed=1), launcher='slurm', resume=True) == digest(work_dir='b')
    assert digest(load_from='/a/x.pth') == digest(load_from='/b/x.pth') != digest(load_from='/b/y.pth')
    assert digest() != digest(train_cfg=dict(config['train_cfg'], max_epochs=4))
    backbone = dict(config['model']['backbone'], drop_path_rate=0.25)
    assert digest() != digest(model=dict(config['model'], backbone=backbone))
    # It stays the same from version to version, as tables name it.
    assert Run(None, 'mine', dict(a=1, b=[dict(checkpoint='x/y.pth')], launcher='slurm')).hash == '4d677619'


def test_commands(root, tmp_path, digits):
    entry = Entry('pelk-atto_1xb64_digits', root / DIGITS)

    def command(config, **environment):
        return command_of(Run(tmp_path, entry.name, config, dict(top1=1.0), environment=environment), entry, root)

    train = f'python tools/train.py {root / DIGITS}'
    assert command(digits, seed='5') == (f'{train} --cfg-options randomness.seed=5', [])
    # As our runner leaves it.
    with_hooks = load_config(str(root / DIGITS))
    add_own_hooks(with_hooks)
    assert command(with_hooks.to_dict()) == (train, [])
    changed = json.loads(json.dumps(digits, default=str))
    changed['optim_wrapper']['optimizer']['lr'] = 0.5
    changed['model']['backbone']['kernel_sizes'] = [9, 7, 7, 5]
    options = ['model.backbone.kernel_sizes=[9,7,7,5]', 'optim_wrapper.optimizer.lr=0.5']
    assert command(changed, launcher='pytorch', processes='4') == (
        f"bash tools/dist_train.sh {root / DIGITS} 4 --cfg-options '{options[0]}' {options[1]}", options)
    # The options of the command give the config of the run.
    override = {key: DictAction._parse_iterable(value) for key, value in (option.split('=') for option in options)}
    assert load_config(str(root / DIGITS), override).to_dict()['model'] == changed['model']
    changed['train_dataloader']['num_workers'] = 9
    assert command(dict(changed, model=digits['model'], optim_wrapper=digits['optim_wrapper'])) == (
        f'{train} --cfg-options train_dataloader.num_workers=9', [])
    # A checkpoint to start from is a setting, one to go on from is not.
    for resume, expected in ((False, ['load_from=x.pth']), (True, [])):
        assert command(dict(digits, load_from='x.pth', resume=resume, visualizer=dict(type='Other')))[1] == expected
    # Options turn these values into others, or cannot hold them.
    for value in ('1', 'a b', '[a(,b]', 'a,b', {}, {(1, ): 2}):
        assert command(dict(digits, load_from=value)) == (f'python tools/train.py {tmp_path}/{entry.name}.py', None)
    # A change that options cannot express starts from the config that the run left.
    del changed['train_dataloader']
    assert command(changed, launcher='slurm', processes='8') == (
        f'bash tools/slurm_train.sh PARTITION {entry.name} {tmp_path}/{entry.name}.py', None)
