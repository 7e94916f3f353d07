"""The leaderboard: what is read from work directories, joined with the paper's tables, and written."""

import csv
import io
import json
import runpy
import sys

import pytest
from mmengine.config import Config

from pelk_mm.analysis import load_paper_tables
from pelk_mm.analysis.leaderboard import (
    CostCounter,
    Entry,
    Leaderboard,
    Problem,
    Row,
    Run,
    Table,
    Value,
    find_runs,
    read_catalogue,
    to_csv,
    to_html,
    to_markdown,
)
from pelk_mm.analysis.leaderboard.catalogue import command_of
from pelk_mm.analysis.leaderboard.runs import read_dumped_config
from pelk_mm.engine.launch import load_config

DIGITS = 'configs/digits/pelk-atto_1xb64_digits.py'
TINY = 'configs/imagenet/pelk-tiny_32xb128_in1k.py'

LOG = """2026/11/22 01:10:15 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    Python: 3.11.7 (main, May  9 2026, 07:35:25) [GCC 12.2.0]
    CUDA available: True
    GPU 0,1: NVIDIA A100
    PyTorch: 2.11.0+cu130
    PyTorch compiling details: PyTorch built with:
  - GCC 13.3

    MMEngine: 0.10.12

Runtime environment:
    seed: {seed}
    Distributed launcher: {launcher}
    GPU number: {processes}
"""


@pytest.fixture(scope='module')
def digits(root):
    """The config of the digits, as a run holds it."""
    return load_config(str(root / DIGITS)).to_dict()


def write_start(folder,
                name,
                config,
                records=(),
                time='20261122_011013',
                seed=7,
                launcher='none',
                processes=1,
                test=None):
    """What MMEngine leaves of one start of a training or a test."""
    start = folder / time
    (start / 'vis_data').mkdir(parents=True)
    (start / f'{time}.log').write_text(LOG.format(seed=seed, launcher=launcher, processes=processes))
    Config(config).dump(start / 'vis_data' / 'config.py')
    (folder / f'{name}.py').write_text((start / 'vis_data' / 'config.py').read_text())
    if test is not None:
        (start / f'{time}.json').write_text(json.dumps(test))
        return start
    lines = [json.dumps(record) + '\n' for record in records]
    for file in ('scalars.json', f'{time}.json'):
        (start / 'vis_data' / file).write_text(''.join(lines))
    return start


def epochs(*accuracies, start=1):
    """Logs of training and validation."""
    return [
        record for epoch, accuracy in enumerate(accuracies, start)
        for record in (dict(lr=0.001, loss=1.5, epoch=epoch, iter=79 * epoch, step=79 * epoch), {
            'accuracy/top1': accuracy,
            'accuracy/top5': 100.0,
            'time': 0.1,
            'step': epoch
        })
    ]


@pytest.fixture
def config(digits):
    return dict(digits, train_cfg=dict(digits['train_cfg'], max_epochs=3))


def test_a_dumped_config_is_read_without_running_it(tmp_path, digits):
    Config(digits).dump(tmp_path / 'config.py')
    assert Config(read_dumped_config(tmp_path / 'config.py')).pretty_text == Config(digits).pretty_text
    proof = tmp_path / 'ran'
    for code in (f'open({str(proof)!r}, "w")', f'a = open({str(proof)!r}, "w")', 'a = dict(b=[exec("x = 1")])',
                 'a = ('):
        (tmp_path / 'bad.py').write_text(code)
        with pytest.raises(ValueError, match='line 1|is no config'):
            read_dumped_config(tmp_path / 'bad.py')
    assert not proof.exists()


def test_a_training(tmp_path, config):
    write_start(tmp_path / 'run', 'mine', config, epochs(80.0, 90.0, 95.5), seed=42, launcher='pytorch', processes=2)
    (run, ), problems = find_runs([tmp_path])
    assert problems == []
    assert (run.name, run.metrics, run.progress, run.is_finished) == ('mine', dict(top1=95.5), (3, 3), True)
    assert run.measured == 'validation at epoch 3'
    assert run.environment == dict(
        Python='3.11.7',
        PyTorch='2.11.0+cu130',
        MMEngine='0.10.12',
        GPU='NVIDIA A100',
        seed='42',
        processes='2',
        launcher='pytorch')


def test_a_training_that_was_stopped_and_resumed(tmp_path, config):
    write_start(tmp_path, 'mine', config, epochs(80.0))
    (run, ), _ = find_runs([tmp_path])
    assert (run.progress, run.is_finished) == ((1, 3), False)
    write_start(tmp_path, 'mine', config, epochs(91.0, 92.0, start=2), time='20261122_020000')
    (run, ), _ = find_runs([tmp_path])
    assert (run.progress, run.is_finished, run.metrics) == ((3, 3), True, dict(top1=92.0))


def test_iterations_and_factors_to_per_cent(tmp_path):
    config = dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=100))
    write_start(tmp_path, 'mine', config, [{
        'mIoU': 47.5,
        'step': 100
    }, {
        'coco/bbox_mAP': 0.5,
        'coco/segm_mAP': 0.25,
        'coco/bbox_mAP_50': 0.9,
        'step': 100
    }])
    (run, ), _ = find_runs([tmp_path])
    assert run.metrics == dict(ap_box=50.0, ap_mask=25.0)
    assert (run.unit, run.progress) == ('iteration', (100, 100))


@pytest.mark.parametrize('place', ['work_dir', 'nested', 'elsewhere'])
def test_a_test_counts_for_the_run_that_it_is_of(tmp_path, config, place):
    folder = tmp_path / 'training'
    write_start(folder, 'mine', config, epochs(80.0, 90.0, 95.5))
    tested = dict(work_dir=folder, nested=folder / 'test_abc', elsewhere=tmp_path / 'other')[place]
    write_start(
        tested,
        'mine',
        dict(config, load_from=str(folder / 'epoch_3.pth')),
        time='20261122_030000',
        test={
            'accuracy/top1': 95.25,
            'time': 0.1
        })
    (run, ), problems = find_runs([tmp_path])
    assert problems == []
    assert run.metrics == dict(top1=95.25)
    assert run.measured == 'test of epoch_3.pth'
    assert run.source == tested / '20261122_030000' / '20261122_030000.json'


def test_a_test_of_an_earlier_checkpoint_is_no_finished_run(tmp_path, config):
    write_start(tmp_path, 'mine', config, epochs(80.0, 90.0, 95.5))
    write_start(
        tmp_path, 'mine', dict(config, load_from='epoch_2.pth'), time='20261122_030000', test={'accuracy/top1': 90.0})
    (run, ), _ = find_runs([tmp_path])
    assert (run.progress, run.is_finished) == ((2, 3), False)


def test_a_test_alone(tmp_path, config):
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
    runs, problems = find_runs([tmp_path])
    assert [(run.folder.name, run.metrics) for run in runs] == [('a', dict(top1=93.0)), ('b', {})]
    told = {problem.where: problem.text for problem in problems}
    scalars = good / 'vis_data' / 'scalars.json'
    assert told[f'{scalars}, line 5'] == 'must be an object, got list'
    assert told[f'{scalars}, line 7'].startswith('is broken or half-written')
    assert 'stopped before it logged anything' in told[str(empty)]
    assert 'line 1 is no assignment' in told[str(code / 'vis_data' / 'config.py')]
    assert told[str(half / f'{half.name}.json')].startswith('is broken or half-written')
    assert told[str(nan / f'{nan.name}.json')].startswith('has none of the metrics')
    assert 'what was run is not known' in told[str(nothing)]
    assert len(told) == 7


def test_the_hash_is_of_the_experiment_not_of_the_run(config):

    def digest(**changes):
        return Run(None, 'mine', dict(config, **changes)).hash

    assert digest(work_dir='a', randomness=dict(seed=1), launcher='slurm', resume=True) == digest(work_dir='b')
    assert digest(load_from='/a/x.pth') == digest(load_from='/b/x.pth') != digest(load_from='/b/y.pth')
    assert digest() != digest(train_cfg=dict(config['train_cfg'], max_epochs=4))
    backbone = dict(config['model']['backbone'], drop_path_rate=0.25)
    assert digest() != digest(model=dict(config['model'], backbone=backbone))


def test_catalogue_lists_every_model(root):
    entries, problems = read_catalogue(root)
    assert problems == []
    tiny = next(entry for entry in entries if entry.name == 'pelk-tiny_32xb128_in1k')
    assert (tiny.table, tiny.row, tiny.figures, tiny.folder) == (4, 'PeLK-T', dict(top1=82.6), 'imagenet')
    assert len({entry.name for entry in entries}) == len(entries)


def test_a_broken_metafile_is_named(tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'metafile.yml').write_text('Models:\n  - Name: [')
    entries, (problem, ) = read_catalogue(tmp_path)
    assert entries == []
    assert problem.where.endswith('metafile.yml')


def test_commands(root, tmp_path, digits):
    entry = Entry('pelk-atto_1xb64_digits', root / DIGITS)
    run = Run(tmp_path, entry.name, digits, dict(top1=1.0), environment=dict(seed='5'))
    assert command_of(run, entry,
                      root) == (f'python tools/train.py {root / DIGITS} --cfg-options randomness.seed=5', [])
    changed = json.loads(json.dumps(digits, default=str))
    changed['optim_wrapper']['optimizer']['lr'] = 0.5
    changed['model']['backbone']['kernel_sizes'] = [9, 7, 7, 5]
    run = Run(tmp_path, entry.name, changed, environment=dict(launcher='pytorch', processes='4'))
    options = ['model.backbone.kernel_sizes=[9,7,7,5]', 'optim_wrapper.optimizer.lr=0.5']
    assert command_of(run, entry,
                      root) == (f"bash tools/dist_train.sh {root / DIGITS} 4 --cfg-options '{options[0]}' {options[1]}",
                                options)
    # What the command says gives the config of the run.
    from mmengine.config import DictAction
    override = {key: DictAction._parse_iterable(value) for key, value in (option.split('=') for option in options)}
    assert load_config(str(root / DIGITS), override).to_dict()['model'] == changed['model']
    changed['train_dataloader']['num_workers'] = 9
    run = Run(tmp_path, entry.name, dict(changed, model=digits['model'], optim_wrapper=digits['optim_wrapper']))
    assert command_of(run, entry,
                      root) == (f'python tools/train.py {root / DIGITS} --cfg-options train_dataloader.num_workers=9',
                                [])
    # A checkpoint to start from is a setting, one to go on from is not.
    for resume, expected in ((False, ['load_from=x.pth']), (True, [])):
        run = Run(tmp_path, entry.name, dict(digits, load_from='x.pth', resume=resume, visualizer=dict(type='Other')))
        assert command_of(run, entry, root)[1] == expected
    # What options cannot say starts from what the run left.
    del changed['train_dataloader']
    run = Run(tmp_path, entry.name, changed, environment=dict(launcher='slurm', processes='8'))
    assert command_of(run, entry,
                      root) == (f'bash tools/slurm_train.sh PARTITION {entry.name} {tmp_path}/{entry.name}.py', None)


def test_values():
    value = Value(82.6, (82.4, 82.6, 82.7))
    assert value.mean == pytest.approx(82.5667, abs=1e-4)
    assert value.spread == pytest.approx(0.15275, abs=1e-5)
    assert value.difference == pytest.approx(-0.0333, abs=1e-4)
    assert (Value(82.6).mean, Value(82.6).spread, Value(82.6).difference) == (None, None, None)
    assert Value(None, (1.0, )).spread is None


@pytest.fixture(scope='module')
def tables(root, tmp_path_factory, digits):
    """Tables of two seeds of PeLK-T, of a third run that is not finished, of runs of the digits, and of a sweep."""
    work_dirs = tmp_path_factory.mktemp('work_dirs')
    tiny = load_config(str(root / TINY)).to_dict()
    end = tiny['train_cfg']['max_epochs']
    for seed, accuracy in ((1, 82.2), (2, 82.6)):
        config = dict(tiny, work_dir=f'seed{seed}', randomness=dict(tiny['randomness'], seed=seed))
        write_start(work_dirs / f'seed{seed}', 'pelk-tiny_32xb128_in1k', config, epochs(accuracy, start=end), seed=seed)
    write_start(work_dirs / 'seed3', 'pelk-tiny_32xb128_in1k', tiny, epochs(30.0, start=17), seed=3)
    end = digits['train_cfg']['max_epochs']
    write_start(work_dirs / 'digits', 'pelk-atto_1xb64_digits', digits, epochs(97.25, start=end))
    write_start(work_dirs / 'sweep', 'pelk-33-tiny_8-4-2-1-1-1_32xb128-120e_in1k_0123456789', digits,
                epochs(60.0, start=end))
    runs, problems = find_runs([work_dirs])
    assert problems == []
    entries = [entry for entry in read_catalogue(root)[0] if entry.table in (2, 3, 4, 5) or entry.folder == 'digits']
    board = Leaderboard(runs, entries, root)
    throughput = dict(
        environment=dict(device='cuda', device_name='H100', torch='2.11.0'),
        setting='224x224, batch 128',
        inference=dict(fp32={
            'SLaK-T': dict(images_per_second=2000.0),
            'PeLK-T': dict(images_per_second=3000.0)
        }))
    return [*board.paper_tables([(work_dirs / 'h100.json', throughput)]), *board.own_tables()]


def row_of(tables, key, name):
    table = next(table for table in tables if table.key == key)
    row, = (row for row in table.rows if row.name == name)
    return row


def test_paper_tables_hold_every_row_and_figure(tables):
    printed = load_paper_tables()
    for key in ('table2_ade20k', 'table3_coco', 'table4_imagenet'):
        rows = next(table for table in tables if table.key == key).rows
        assert len(rows) == len(printed[key]['rows'])
        for row, line in zip(rows, printed[key]['rows']):
            assert row.name.startswith(line['method'])
            assert {
                name: value.paper
                for name, value in row.values.items()
            } == {
                name: line[name]
                for name in row.values
            }
    # Every other row has a config here, so that it can be run.
    reasons = {row.name: row.remark for table in tables[:3] for row in table.rows if row.status == 'no config'}
    assert list(reasons) == ['PerViT-S, 224px', 'PVT-Large, 224px', 'PerViT-M, 224px']
    assert reasons['PVT-Large, 224px'].startswith('mmpretrain has no PVT')


def test_repeated_runs_are_one_row(tables):
    row = row_of(tables, 'table4_imagenet', 'PeLK-T, 224px')
    assert row.status == 'run'
    value = row.values['top1']
    assert value.ours == (82.2, 82.6)
    assert value.difference == pytest.approx(-0.2)
    assert row.remark == ('2 runs, seeds 1, 2; validation at epoch 300; seed3 stands at epoch 17 of 300')
    assert row.command == f'python tools/train.py {TINY} --cfg-options randomness.seed=1'
    assert row.environment == 'Python 3.11.7, PyTorch 2.11.0+cu130, MMEngine 0.10.12, GPU NVIDIA A100, 1 process'
    assert row_of(tables, 'table4_imagenet', 'PeLK-S, 224px').status == 'not run'


def test_throughput(tables):
    values = row_of(tables, 'table8_throughput', 'PeLK-T').values
    assert values['throughput'] == Value(1138, (3000.0, ))
    assert values['relative'].difference == pytest.approx(1.5 - 1138 / 754)
    missing = row_of(tables, 'table8_throughput', 'PeLK-101-T')
    assert (missing.status, missing.values['throughput']) == ('not run', Value(1077))


def test_own_tables(tables):
    digits = row_of(tables, 'digits-top-1', 'pelk-atto_1xb64_digits')
    assert digits.values['top1'] == Value(None, (97.25, ))
    swept = row_of(tables, 'ablations-table5_sharing_grid-on-digit_scenes-top-1',
                   'pelk-33-tiny_8-4-2-1-1-1_32xb128-120e_in1k')
    assert swept.values['top1'].ours == (60.0, )
    planned = row_of(tables, 'ablations-table5_sharing_grid-top-1', 'pelk-33-tiny_8-4-2-1-1-1_32xb128-120e_in1k')
    assert (planned.status, planned.values['top1']) == ('not run', Value(81.4))


def test_changed_settings_are_told_and_rows_of_their_own(root, tmp_path, digits):
    end = digits['train_cfg']['max_epochs']
    other = json.loads(json.dumps(digits, default=str))
    other['optim_wrapper']['optimizer']['lr'] = 0.5
    hashes = []
    for name, config, accuracy in (('a', digits, 90.0), ('b', other, 80.0)):
        write_start(tmp_path / name, 'pelk-atto_1xb64_digits', config, epochs(accuracy, start=end))
        hashes.append(Run(None, '', config).hash)
    entry = next(entry for entry in read_catalogue(root)[0] if entry.name == 'pelk-atto_1xb64_digits')
    table, = Leaderboard(find_runs([tmp_path])[0], [entry], root).own_tables()
    rows = {row.name: row for row in table.rows}
    assert rows.keys() == {f'pelk-atto_1xb64_digits [{digest}]' for digest in hashes}
    row = rows[f'pelk-atto_1xb64_digits [{hashes[1]}]']
    assert (row.status, row.values['top1'].ours) == ('changed', (80.0, ))
    assert 'changed: optim_wrapper.optimizer.lr=0.5' in row.remark
    assert rows[f'pelk-atto_1xb64_digits [{hashes[0]}]'].status == 'run'


def test_costs_are_those_of_the_paper_and_counted_once(root, tmp_path, monkeypatch):
    entry = next(entry for entry in read_catalogue(root)[0] if entry.name == 'pelk-tiny_32xb128_in1k')
    for _ in range(2):
        board = Leaderboard([], [entry], root, CostCounter(tmp_path / 'costs.json'))
        tables = board.paper_tables()
        assert board.problems == []
        values = row_of(tables, 'table4_imagenet', 'PeLK-T, 224px').values
        assert values['params'].mean == pytest.approx(28.7, abs=0.05)
        assert values['flops'].mean == pytest.approx(5.83, abs=0.01)
        assert values['flops'].difference == pytest.approx(0.23, abs=0.01)
        # The second time nothing is counted.
        monkeypatch.setattr('pelk_mm.analysis.leaderboard.tables.count_complexity', None)
    broken = Leaderboard([], [entry], root, CostCounter())
    assert row_of(broken.paper_tables(), 'table4_imagenet', 'PeLK-T, 224px').values['flops'].mean is None
    assert 'were not counted' in broken.problems[0].text


def test_csv(tables):
    lines = list(csv.DictReader(io.StringIO(to_csv(tables))))
    line, = (line for line in lines if line['row'] == 'PeLK-T, 224px' and line['quantity'] == 'top1')
    assert (float(line['paper']), float(line['ours']), line['runs']) == (82.6, pytest.approx(82.4), '2')
    assert float(line['spread']) == pytest.approx(0.2828, abs=1e-4)
    assert (line['status'], line['config'], len(line['config_hash'])) == ('run', TINY, 8)
    assert all(line['ours'] == '' for line in lines if line['status'] == 'not run')


def test_csv_holds_no_formulas():
    """Neither for those who name their runs so, nor in what is told of them; numbers below zero stay numbers."""
    texts = {
        '=1+1': "'=1+1", '+1': "'+1", '-1': "'-1", '@SUM(A1)': "'@SUM(A1)", '\t=1': "'\t=1", ' =1': "' =1",
        '\r=1': "' =1", '\n=1': "' =1", 'a\r=1': 'a =1', "'quoted": "'quoted", 'a = -1': 'a = -1', '': '', '1': '1'
    }  # yapf: disable
    rows = [
        Row(name, dict(top1=Value(90.0, (80.0, ))), status='run', command=name, remark=name, sources=[name])
        for name in texts
    ]
    text = to_csv([Table('key', 'title', 'note', ['top1'], rows)])
    lines = list(csv.DictReader(io.StringIO(text, newline='')))
    for column in ('row', 'command', 'remark', 'sources'):
        assert [line[column] for line in lines] == list(texts.values())
    assert {line['difference'] for line in lines} == {'-10.0'}


def test_markdown(tables):
    text = to_markdown(tables, [Problem('a.json, line 3', 'is broken')], 'Made today.')
    line = next(line for line in text.splitlines() if line.startswith('| PeLK-T, 224px'))
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells == ['PeLK-T, 224px', '82.6', '82.4 ± 0.28 (2)', '-0.2', '29', '', '', '5.6', '', '', 'run']
    assert any(line.startswith('| PeLK-S, 224px') and 'not run' in line for line in text.splitlines())
    assert f'`python tools/train.py {TINY} --cfg-options randomness.seed=1`' in text
    assert '- `a.json, line 3` is broken' in text


def test_html_escapes_what_it_shows(tables):
    text = to_html(tables, [Problem('<script>alert(1)</script>', '&')], 'Made today.')
    assert '<script>alert' not in text
    assert '&lt;script&gt;alert(1)&lt;/script&gt;' in text
    assert 'http://' not in text
    assert 'https://' not in text


def test_the_tool(root, tmp_path, config, monkeypatch, capsys):
    start = write_start(tmp_path / 'work_dirs', 'pelk-atto_1xb64_digits', config, epochs(1.0, 2.0, 96.0))
    with open(start / 'vis_data' / 'scalars.json', 'a') as file:
        file.write('{"half')
    (tmp_path / 'timing.json').write_text('{"inference": {}}')

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['leaderboard.py', *map(str, arguments), '--out', str(tmp_path / 'out')])
        runpy.run_path(str(root / 'tools/leaderboard.py'), run_name='__main__')

    run(tmp_path / 'work_dirs', '--no-costs', '--throughput', tmp_path / 'timing.json')
    out = capsys.readouterr()
    assert out.out.split() == [str(tmp_path / 'out' / f'leaderboard.{ending}') for ending in ('md', 'csv', 'html')]
    assert f'left out: {start}/vis_data/scalars.json, line 7 is broken or half-written' in out.err
    assert 'is no result of tools/benchmarks/throughput.py: it lacks environment, setting' in out.err
    assert '96.0' in (tmp_path / 'out' / 'leaderboard.md').read_text()
    with pytest.raises(SystemExit):
        run(tmp_path / 'work_dirs', '--no-costs')
    assert 'leaderboard.md exists; choose another folder, or replace it by --overwrite' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path / 'nothing')
    assert 'work_dirs must be folders, got' in capsys.readouterr().err
