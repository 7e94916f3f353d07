"""The table of the reach tasks: from the command to the report, and verdicts from numbers."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip('mmseg')


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('benchmarks/reach.py')


def test_from_the_command_to_the_report(tool, tmp_path, monkeypatch):
    """Two mixers, two iterations, in this process; started again, nothing is trained."""
    complete = tool.Training.config

    def with_few_maps(training):
        cfg = complete(training)
        cfg.val_dataloader.dataset.length = 8
        return cfg

    monkeypatch.setattr(tool.Training, 'config', with_few_maps)
    monkeypatch.setattr(tool, 'ProcessPoolExecutor', lambda *args: ThreadPoolExecutor(1))
    monkeypatch.setattr(sys, 'argv', [
        'reach.py', '--work-dir', str(tmp_path), '--iterations', '2', '--seeds', '2', '--blocks', '1', '--tasks',
        'offset pairs', '--mixers', 'stripe 51', 'dense 51', '--at-once', '1'])
    tool.main()
    report = json.loads((tmp_path / 'report.json').read_text())
    assert [(row['mixer'], row['bound'], len(row['values'])) for row in report['rows']] == [
        ('stripe 51', 50, 2), ('dense 51', 100, 2)]
    assert set(report['rows'][0]['ranges']) == {'4_9', '9_16', '16_26'}
    assert {each['verdict'] for each in report['predictions']} == {'not run'}
    assert (tmp_path / 'report.png').stat().st_size > 1000
    table = (tmp_path / 'report.md').read_text()
    assert 'offset pairs |      1 | stripe 51 |    2 |' in table
    monkeypatch.setattr(tool, 'run', None)
    tool.main()
    assert json.loads((tmp_path / 'report.json').read_text())['runs'] == report['runs']


@pytest.fixture
def as_predicted(tool):
    """Results of two seeds: the bounds of one block, and with more blocks what is expected."""
    seeds = dict(zip(tool.MIXERS, (30, 49, 75, 93, 72, 87, 88)))
    deeper = dict(dict.fromkeys(tool.MIXERS, 90), **{'7x7': 60, 'stripe 51': 70})
    pairs = dict(zip(tool.MIXERS, ((50, 50), (50, 50), (100, 50), (100, 100), (100, 50), (100, 100), (100, 100))))
    exact = dict(zip(tool.MIXERS, ((50, 50), (50, 50), (100, 50), (100, 100), (64, 50), (64, 60), (64, 60))))
    results = []
    for task, blocks in [('nearest seed', 1), ('nearest seed', 2), ('nearest seed', 4), ('offset pairs', 1),
                         ('offset pairs, exact', 1)]:
        for mixer in tool.MIXERS:
            near, far = (exact if 'exact' in task else pairs)[mixer]
            accuracy = {1: seeds}.get(blocks, deeper)[mixer] if task == 'nearest seed' else (2 * near + far) / 3
            metrics = {'reach/acc': accuracy, 'reach/acc_4_9': near, 'reach/acc_9_16': near, 'reach/acc_16_26': far}
            run = dict(task=task, blocks=blocks, mixer=mixer)
            results += [dict(run, seed=seed, metrics=dict(metrics)) for seed in (0, 1)]
    return results


def test_verdicts_come_from_the_numbers(tool, as_predicted):
    found = tool.verdicts(tool.Results(as_predicted))
    assert [each['verdict'] for each in found] == ['held'] * len(tool.PREDICTIONS)
    for result in as_predicted:
        if (result['task'], result['mixer']) == ('offset pairs, exact', 'peripheral 51'):
            result['metrics']['reach/acc_9_16'] += 10
    failed = [each for each in tool.verdicts(tool.Results(as_predicted)) if each['verdict'] == 'failed']
    assert [each['number'] for each in failed] == [11]
    assert 'peripheral 51 74.0 <= 68 (failed)' in failed[0]['numbers']


def test_paired_differences(tool):
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t 3.46 with 2 degrees of freedom.
    found = tool.compare([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx(dict(difference=2.0, half_interval=4.303 / 3**0.5, p=0.0742), abs=1e-3)


def test_the_page_has_the_predictions(tool, root):
    page = (root / 'docs/benchmarks/reach.md').read_text(encoding='utf-8')
    for number, prediction in enumerate(tool.PREDICTIONS, 1):
        assert f'\n{number}. {prediction.text} ' in page
