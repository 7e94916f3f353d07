"""Sweeps: what they plan, what they take for finished, and the tables that they write."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pelk_mm.analysis.sweep_table import SweepTable
from pelk_mm.analysis.sweeps import Launcher, plan_sweep

TABLE1, EMBEDDING = Path('configs/ablations/table1_dense_vs_stripe'), Path('configs/ablations/position_embedding')
TABLE6, TABLE7 = Path('configs/ablations/table6_central_region'), Path('configs/ablations/table7_kernel_sizes')


@pytest.fixture(autouse=True)
def at_root(root, monkeypatch):
    monkeypatch.chdir(root)


@pytest.fixture(scope='module')
def table1(root, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return plan_sweep(TABLE1, tmp_path_factory.mktemp('sweeps'))


@pytest.fixture
def trials(table1, tmp_path):
    """Table 1 in a folder of its own."""
    return plan_like(table1, tmp_path)


def plan_like(trials, work_dir):
    moved = {}
    for trial in trials:
        checkpoint = work_dir / 'runs' / trial.folder.name / trial.checkpoint.name
        moved[trial.name] = replace(trial, checkpoint=checkpoint, start=trial.start and moved[trial.start.name])
    return list(moved.values())


def finish_training(trial, checkpoint=None):
    """Leave what MMEngine leaves after a training, or of one that was stopped after ``checkpoint``."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    path = trial.folder / (checkpoint or trial.checkpoint.name)
    path.touch()
    (trial.folder / 'last_checkpoint').write_text(f'/elsewhere/{path.name}')


def finish_test(trial, value, stamp='20260101_000000'):
    """Leave what MMEngine leaves after a test."""
    folder = trial.folder / 'test' / stamp
    folder.mkdir(parents=True)
    (folder / 'vis_data').mkdir()
    (folder / 'vis_data' / f'{stamp}.json').write_text('{"other": 1}')
    (folder / f'{stamp}.json').write_text(json.dumps({trial.metric.key: value, 'time': 0.1}))


def test_segmentors_start_from_the_classifier_of_their_row(trials):
    assert len(trials) == 8
    for classifier, segmentor in zip(trials[::2], trials[1::2]):
        assert classifier.labels == segmentor.labels
        assert (classifier.start, segmentor.start) == (None, classifier)
        assert (classifier.checkpoint.name, segmentor.checkpoint.name) == ('epoch_120.pth', 'iter_80000.pth')
        assert f'model.backbone.init_cfg.checkpoint={classifier.checkpoint}' in segmentor.train_command(Launcher())
        assert not any('init_cfg' in word for word in segmentor.test_command(Launcher()))


def test_commands(trials):
    name, config, folder = trials[0].name, str(trials[0].config), str(trials[0].folder)
    rest = ['--work-dir', folder, '--resume']
    checkpoint = f'{folder}/epoch_120.pth'
    assert trials[0].train_command(Launcher()) == ['python', 'tools/train.py', config, *rest]
    assert trials[0].train_command(Launcher(gpus=8, train_args=['--amp'])) == [
        'bash', 'tools/dist_train.sh', config, '8', *rest, '--amp'
    ]
    assert trials[0].test_command(Launcher(gpus=8, train_args=['--amp'])) == [
        'bash', 'tools/dist_test.sh', config, checkpoint, '8', '--work-dir', f'{folder}/test'
    ]
    assert trials[0].test_command(Launcher(partition='part')) == [
        'bash', 'tools/slurm_test.sh', 'part', name, config, checkpoint, '--work-dir', f'{folder}/test'
    ]


def test_what_is_finished(trials):
    trial = trials[0]
    assert not trial.is_trained
    assert trial.result is None
    finish_training(trial, 'epoch_119.pth')
    assert not trial.is_trained
    finish_training(trial)
    assert trial.is_trained
    assert trial.result is None
    # A test that was stopped leaves no metrics.
    (trial.folder / 'test' / '20250101_000000').mkdir(parents=True)
    assert trial.result is None
    finish_test(trial, 80.0)
    finish_test(trial, 81.0, '20260102_000000')
    assert trial.result == 81.0
    trial.checkpoint.unlink()
    assert not trial.is_trained


def test_table_of_finished_and_other_trials(trials, tmp_path):
    for trial, value in zip(trials, (71.26, 35.0, 72.0)):
        finish_training(trial)
        finish_test(trial, value)
    table = SweepTable.from_trials('Table 1', trials)
    files = {file.suffix: file for file in table.save(tmp_path / 'out')}
    assert list(csv.reader(files['.csv'].open())) == [
        ['Method', 'Kernel', 'Sparsity', 'top-1, paper', 'top-1, ours', 'mIoU, paper', 'mIoU, ours'],
        ['SLaK-51', '51x5 + 5x51', 'yes', '81.6', '71.3', '46.5', '35.0'],
        ['RepLK-51', '51x51', 'yes', '81.7', '72.0', '46.9', ''],
        ['SLaK-51', '51x5 + 5x51', 'no', '81.3', '', '46.1', ''],
        ['RepLK-51', '51x51', 'no', '81.6', '', '46.6', ''],
    ]
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in files['.md'].read_text().splitlines()[2:]]
    assert lines[0] == table.header
    assert lines[3] == ['RepLK-51', '51x51', 'yes', '81.7', '72.0', '46.9', 'not run']
    rows = json.loads(files['.json'].read_text())['rows']
    assert rows[0]['top-1'] == dict(
        config=str(trials[0].config),
        checkpoint=str(trials[0].checkpoint),
        paper=81.6,
        source='the paper, Table 1',
        ours=71.26)
    assert files['.png'].stat().st_size > 0
    titles = [axis.get_title() for axis in table.draw().axes]
    assert titles == ['top-1, paper', 'top-1, ours', 'mIoU, paper', 'mIoU, ours']
    points = table.draw().axes[1].lines[0].get_xydata().tolist()
    assert points == [[71.26, 0], [72.0, 1]]


def test_a_row_of_two_tables_is_trained_once(tmp_path):
    center5 = plan_sweep(TABLE6, tmp_path)[2]
    finish_training(center5)
    assert [trial.is_trained for trial in plan_sweep(TABLE7, tmp_path)] == [True, False, False, False, False]


def test_options_make_another_trial(tmp_path):
    plain, other = (
        plan_sweep(TABLE6, tmp_path, dict(mmpretrain=options, mmseg=['train_cfg.max_iters=3']))[0]
        for options in ((), ('train_cfg.max_epochs=7', )))
    assert plain.folder != other.folder
    assert other.checkpoint.name == 'epoch_7.pth'
    assert other.train_command(Launcher())[-2:] == ['--cfg-options', 'train_cfg.max_epochs=7']
    with pytest.raises(ValueError, match="KEY=VALUE, got 'max_epochs'"):
        plan_sweep(TABLE6, tmp_path, dict(mmpretrain=['max_epochs']))


def test_digits_are_written_as_configs_and_belong_to_their_code(tmp_path):
    first, again, other = (
        plan_sweep(EMBEDDING, tmp_path, digits=True, environment=environment) for environment in 'aab')
    assert [trial.folder for trial in first] == [trial.folder for trial in again]
    assert not {trial.folder for trial in first} & {trial.folder for trial in other}
    assert len({trial.folder for trial in first}) == 2
    assert all(trial.config == tmp_path / 'configs' / f'{trial.folder.name}.py' for trial in first)
    assert len(list((tmp_path / 'configs').iterdir())) == 4


@pytest.mark.parametrize('change, error, message', [
    (lambda models: None, FileNotFoundError, 'no table of configs'),
    (lambda models: models[0]['Metadata'].pop('Ablation') and models, ValueError, r'must have Metadata\.Ablation'),
    (lambda models: models[::-1], ValueError, 'no classifier with the row'),
])
def test_tables_that_are_none(change, error, message, tmp_path):
    models = change(yaml.safe_load((TABLE1 / 'metafile.yml').read_text())['Models'][:2])
    if models:
        (tmp_path / 'metafile.yml').write_text(yaml.safe_dump(dict(Models=models)))
    with pytest.raises(error, match=message):
        plan_sweep(tmp_path, tmp_path / 'work')
