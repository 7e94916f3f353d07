"""Sweeps: the trainings that they plan, those that they take for finished, and the tables that they write."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pelk_mm.reports import METRICS, Launcher, plan_sweep, save_sweep, sweep_table
from pelk_mm.reports.plots import plot_panels

TABLE1, EMBEDDING, TABLE6, TABLE7 = (
    Path('configs/ablations', name)
    for name in ('table1_dense_vs_stripe', 'position_embedding', 'table6_central_region', 'table7_kernel_sizes'))
DETECTOR = 'configs/coco/cascade-mask-rcnn_pelk-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'


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
    moved = {}
    for trial in table1:
        checkpoint = tmp_path / 'runs' / trial.folder.name / trial.checkpoint.name
        moved[trial.name] = replace(trial, checkpoint=checkpoint, start=trial.start and moved[trial.start.name])
    return list(moved.values())


def finish_training(trial, checkpoint=None):
    """Write what MMEngine leaves after a training, or after one that was stopped after ``checkpoint``."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    path = trial.folder / (checkpoint or trial.checkpoint.name)
    path.touch()
    (trial.folder / 'last_checkpoint').write_text(f'/elsewhere/{path.name}')


def finish_test(trial, value, stamp='20260101_000000'):
    """Write what MMEngine leaves after a test."""
    folder = trial.folder / 'test' / stamp
    (folder / 'vis_data').mkdir(parents=True)
    (folder / 'vis_data' / f'{stamp}.json').write_text('{"other": 1}')
    (folder / f'{stamp}.json').write_text(json.dumps({METRICS[trial.metric].log_key: value, 'time': 0.1}))


def test_segmentors_start_from_the_classifier_of_their_row(trials):
    assert len(trials) == 8
    for classifier, segmentor in zip(trials[::2], trials[1::2]):
        assert classifier.entry.labels == segmentor.entry.labels
        assert (classifier.start, segmentor.start) == (None, classifier)
        assert (classifier.checkpoint.name, segmentor.checkpoint.name) == ('epoch_120.pth', 'iter_80000.pth')
        assert f'model.backbone.init_cfg.checkpoint={classifier.checkpoint}' in segmentor.train_command(Launcher())
        assert not any('init_cfg' in word for word in segmentor.test_command(Launcher()))


def test_commands(trials):
    name, config, folder = trials[0].name, str(trials[0].config), str(trials[0].folder)
    train, test = ['--work-dir', folder, '--resume'], ['--work-dir', f'{folder}/test']
    eight = Launcher(gpus=8, train_args=['--amp'])
    assert trials[0].train_command(Launcher()) == ['python', 'tools/train.py', config, *train]
    assert trials[0].train_command(eight) == ['bash', 'tools/dist_train.sh', config, '8', *train, '--amp']
    files = [config, f'{folder}/epoch_120.pth']
    assert trials[0].test_command(eight) == ['bash', 'tools/dist_test.sh', *files, '8', *test]
    assert trials[0].test_command(Launcher(partition='part')) == [
        'bash', 'tools/slurm_test.sh', 'part', name, *files, *test]


def test_a_trial_is_finished_with_its_last_checkpoint_and_a_complete_test(trials):
    trial = trials[0]
    assert (trial.is_trained, trial.result) == (False, None)
    finish_training(trial, 'epoch_119.pth')
    assert not trial.is_trained
    finish_training(trial)
    # A test that was stopped leaves no metrics.
    (trial.folder / 'test' / '20250101_000000').mkdir(parents=True)
    assert (trial.is_trained, trial.result) == (True, None)
    for value, stamp in ((80.0, '20260101_000000'), (81.0, '20260102_000000'), (82.0, '20260103_000000')):
        finish_test(trial, value, stamp)
        assert trial.result == value
    for content in ('{"accuracy/to', '[]', '{"time": 1}'):
        (trial.folder / 'test/20260103_000000/20260103_000000.json').write_text(content)
        assert trial.result == 81.0
    trial.checkpoint.unlink()
    assert not trial.is_trained


def test_table_of_finished_and_other_trials(trials, tmp_path):
    for trial, value in zip(trials, (71.26, 35.0, 72.0)):
        finish_test(trial, value)
    table = sweep_table('Table 1', trials)
    files = {file.suffix: file for file in save_sweep(table, trials, tmp_path / 'out')}
    header = ['Method', 'Kernel', 'Sparsity', 'top-1, paper', 'top-1, ours', 'mIoU, paper', 'mIoU, ours']
    assert list(csv.reader(files['.csv'].open())) == [
        header,
        ['SLaK-51', '51x5 + 5x51', 'yes', '81.6', '71.3', '46.5', '35.0'],
        ['RepLK-51', '51x51', 'yes', '81.7', '72.0', '46.9', ''],
        ['SLaK-51', '51x5 + 5x51', 'no', '81.3', '', '46.1', ''],
        ['RepLK-51', '51x51', 'no', '81.6', '', '46.6', ''],
    ]
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in files['.md'].read_text().splitlines()[2:]]
    assert lines[0] == header
    assert lines[3] == ['RepLK-51', '51x51', 'yes', '81.7', '72.0', '46.9', 'not run']
    content = json.loads(files['.json'].read_text())
    assert (content['title'], content['ours'], len(content['rows'])) == ('Table 1', 'ours', 4)
    assert content['rows'][0]['Method'] == 'SLaK-51'
    assert content['rows'][0]['top-1'] == dict(
        config=str(trials[0].config), checkpoint=str(trials[0].checkpoint), paper=81.6, source='the paper, Table 1',
        ours=71.26)
    assert files['.png'].stat().st_size > 0
    axes = plot_panels(table, 'ours').axes
    assert [axis.get_title() for axis in axes] == ['top-1, paper', 'top-1, ours', 'mIoU, paper', 'mIoU, ours']
    assert axes[1].lines[0].get_xydata().tolist() == [[71.26, 0], [72.0, 1]]


def test_figures_that_the_paper_does_not_give(tmp_path):
    trials = plan_sweep(Path('configs/ablations/conv_ratio'), tmp_path)
    table = sweep_table('T', trials)
    files = save_sweep(table, trials, tmp_path / 'out', 'digits')
    row = next(line for line in files[0].read_text().splitlines() if line.startswith('| 1/4'))
    assert [cell.strip() for cell in row.split('|')[1:-1]] == ['1/4', '-', 'not run']
    assert files[1].read_text().splitlines()[:2] == ['Convolved channels,"top-1, paper","top-1, digits"', '1/4,,']
    assert plot_panels(table, 'digits').axes[1].get_title() == 'top-1, digits: none'


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


@pytest.mark.parametrize(('change', 'error', 'message'), [
    (lambda models: None, FileNotFoundError, 'not a table of configs'),
    (lambda models: models[0]['Metadata'].pop('Ablation') and models, ValueError, r'must have Metadata\.Ablation'),
    (lambda models: models[::-1], ValueError, 'no classifier with the row'),
    (lambda models: [dict(models[0], Config=DETECTOR)], ValueError, 'must be of mmpretrain or mmseg, got mmdet'),
    (lambda models: [], ValueError, 'must list models'),
    (lambda models: [dict(models[0], Name=3)], ValueError, r'metafile\.yml is not a metafile: Name must be a text'),
])
def test_wrong_metafiles_are_named(change, error, message, tmp_path):
    models = change(yaml.safe_load((TABLE1 / 'metafile.yml').read_text())['Models'][:2])
    if models is not None:
        (tmp_path / 'metafile.yml').write_text(yaml.safe_dump(dict(Models=models)))
    with pytest.raises(error, match=message):
        plan_sweep(tmp_path, tmp_path / 'work')
