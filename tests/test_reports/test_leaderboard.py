"""The leaderboard: runs joined with the paper's tables and the metafiles, and written."""

import csv
import io
import json

import pytest

from pelk_mm.analysis import load_paper_tables
from pelk_mm.engine.launch import load_config
from pelk_mm.reports import (
    CostCounter,
    Leaderboard,
    Problem,
    Row,
    Table,
    Value,
    find_runs,
    read_catalogue,
    to_csv,
    to_html,
    to_markdown,
)

from .run_writer import epochs, write_start

ATTO, TINY = 'pelk-atto_1xb64_digits', 'pelk-tiny_32xb128_in1k'
SWEPT = 'pelk-33-tiny_8-4-2-1-1-1_32xb128-120e_in1k'


@pytest.fixture(scope='module')
def entries(root):
    entries, problems = read_catalogue(root)
    assert problems == []
    return {entry.name: entry for entry in entries}


def test_catalogue_lists_every_model(root, entries):
    tiny = entries[TINY]
    assert (tiny.table, tiny.row, tiny.figures, tiny.folder) == (4, 'PeLK-T', dict(top1=82.6), 'imagenet')
    assert tiny.sources == dict(top1='the paper, Table 4')
    assert len(entries) == len(read_catalogue(root)[0])


def test_values():
    value = Value(82.6, (82.4, 82.6, 82.7))
    assert (value.mean, value.spread, value.difference) == pytest.approx((82.5667, 0.15275, -0.0333), abs=1e-4)
    assert (Value(82.6).mean, Value(82.6).spread, Value(82.6).difference) == (None, None, None)
    assert Value(None, (1.0, )).spread is None


@pytest.fixture(scope='module')
def tables(root, tmp_path_factory, digits, entries):
    """Tables of two seeds of PeLK-T, of a third run that is not finished, of runs of the digits, and of a sweep."""
    work_dirs = tmp_path_factory.mktemp('work_dirs')
    tiny = load_config(str(root / entries[TINY].path)).to_dict()
    for seed, accuracy, epoch in ((1, 82.2, 300), (2, 82.6, 300), (3, 30.0, 17)):
        config = dict(tiny, work_dir=f'seed{seed}', randomness=dict(tiny['randomness'], seed=seed))
        write_start(work_dirs / f'seed{seed}', TINY, config, epochs(accuracy, start=epoch), seed=seed)
    end = digits['train_cfg']['max_epochs']
    write_start(work_dirs / 'digits', ATTO, digits, epochs(97.25, start=end))
    write_start(work_dirs / 'sweep', f'{SWEPT}_0123456789', digits, epochs(60.0, start=end))
    runs, problems = find_runs([work_dirs])
    assert problems == []
    shown = [entry for entry in entries.values() if entry.table in (2, 3, 4, 5) or entry.folder == 'digits']
    board = Leaderboard(runs, shown, root)
    timings = {'SLaK-T': dict(images_per_second=2000.0), 'PeLK-T': dict(images_per_second=3000.0)}
    throughput = dict(environment=dict(device='cuda', device_name='H100', torch='2.11.0'),
                      setting='224x224, batch 128', inference=dict(fp32=timings))
    return [*board.paper_tables([(work_dirs / 'h100.json', throughput)]), *board.own_tables()]


def row_of(tables, key, name):
    row, = (row for table in tables if table.key == key for row in table.rows if row.name == name)
    return row


def test_paper_tables_hold_every_row_and_figure(tables):
    printed = load_paper_tables()
    for table in tables[:3]:
        assert len(table.rows) == len(printed[table.key]['rows'])
        for row, line in zip(table.rows, printed[table.key]['rows']):
            assert row.name.startswith(line['method'])
            assert [value.paper for value in row.values.values()] == [line[name] for name in row.values]
    # Every other row has a config here, so that it can be run.
    reasons = {row.name: row.remark for table in tables[:3] for row in table.rows if row.status == 'no config'}
    assert list(reasons) == ['PerViT-S, 224px', 'PVT-Large, 224px', 'PerViT-M, 224px']
    assert reasons['PVT-Large, 224px'].startswith('mmpretrain has no PVT')


def test_repeated_runs_are_one_row(tables):
    row = row_of(tables, 'table4_imagenet', 'PeLK-T, 224px')
    assert row.status == 'run'
    assert row.values['top1'].ours == (82.2, 82.6)
    assert row.values['top1'].difference == pytest.approx(-0.2)
    assert row.remark == ('2 runs, seeds 1, 2; validation at epoch 300; seed3 stands at epoch 17 of 300')
    assert row.command == f'python tools/train.py configs/imagenet/{TINY}.py --cfg-options randomness.seed=1'
    assert row.environment == 'Python 3.11.7, PyTorch 2.11.0+cu130, MMEngine 0.10.12, GPU NVIDIA A100, 1 process'
    assert row_of(tables, 'table4_imagenet', 'PeLK-S, 224px').status == 'not run'


def test_throughput(tables):
    row, missing = (row_of(tables, 'table8_throughput', name) for name in ('PeLK-T', 'PeLK-101-T'))
    assert row.values['throughput'] == Value(1138, (3000.0, ))
    assert row.values['relative'].difference == pytest.approx(1.5 - 1138 / 754)
    assert (row.remark, row.environment) == ('fp32, 224x224, batch 128', 'device_name H100, torch 2.11.0')
    assert row.command == 'python tools/benchmarks/throughput.py --device cuda --json FILE'
    assert (missing.status, missing.values['throughput']) == ('not run', Value(1077))


def test_own_tables(tables):
    assert row_of(tables, 'digits-top-1', ATTO).values['top1'] == Value(None, (97.25, ))
    swept = row_of(tables, 'ablations-table5_sharing_grid-on-digit_scenes-top-1', SWEPT)
    assert (swept.status, swept.values['top1'].ours) == ('run', (60.0, ))
    planned = row_of(tables, 'ablations-table5_sharing_grid-top-1', SWEPT)
    assert (planned.status, planned.values['top1']) == ('not run', Value(81.4))


def test_changed_settings_are_named_and_rows_of_their_own(root, tmp_path, digits, entries):
    end = digits['train_cfg']['max_epochs']
    other = json.loads(json.dumps(digits, default=str))
    other['optim_wrapper']['optimizer']['lr'] = 0.5
    for name, config, accuracy in (('a', digits, 90.0), ('b', other, 80.0)):
        write_start(tmp_path / name, ATTO, config, epochs(accuracy, start=end))
    runs = find_runs([tmp_path])[0]
    table, = Leaderboard(runs, [entries[ATTO]], root).own_tables()
    rows = {row.name: row for row in table.rows}
    same, changed = (rows.pop(f'{ATTO} [{run.hash}]') for run in runs)
    assert rows == {}
    assert (same.status, changed.status, changed.values['top1'].ours) == ('run', 'changed', (80.0, ))
    assert 'changed: optim_wrapper.optimizer.lr=0.5' in changed.remark


def test_costs_are_those_of_the_paper_and_counted_once(root, tmp_path, monkeypatch, entries):
    def count(*cache):
        board = Leaderboard([], [entries[TINY]], root, CostCounter(*cache))
        return row_of(board.paper_tables(), 'table4_imagenet', 'PeLK-T, 224px').values, board.problems

    for _ in range(2):
        values, problems = count(tmp_path / 'costs.json')
        assert problems == []
        assert values['params'].mean == pytest.approx(28.7, abs=0.05)
        assert values['flops'].mean == pytest.approx(5.83, abs=0.01)
        assert values['flops'].difference == pytest.approx(0.23, abs=0.01)
        # The second time nothing is counted.
        monkeypatch.setattr('pelk_mm.reports.costs.count_complexity', None)
    values, problems = count()
    assert values['flops'].mean is None
    assert 'were not counted' in problems[0].text


def test_csv(tables):
    lines = list(csv.DictReader(io.StringIO(to_csv(tables))))
    line, = (line for line in lines if line['row'] == 'PeLK-T, 224px' and line['quantity'] == 'top1')
    assert [float(line[key]) for key in ('paper', 'ours', 'spread', 'runs')] == pytest.approx((82.6, 82.4, 0.2828, 2),
                                                                                              abs=1e-4)
    assert (line['status'], line['config'], len(line['config_hash'])) == ('run', f'configs/imagenet/{TINY}.py', 8)
    assert all(line['ours'] == '' for line in lines if line['status'] == 'not run')


def test_csv_holds_no_formulas():
    """Neither in names of runs, nor in their details; numbers below zero stay numbers."""
    texts = {
        '=1+1': "'=1+1", '+1': "'+1", '-1': "'-1", '@SUM(A1)': "'@SUM(A1)", '\t=1': "'\t=1", ' =1': "' =1",
        '\r=1': "' =1", '\n=1': "' =1", 'a\r=1': 'a =1', "'quoted": "'quoted", 'a = -1': 'a = -1', '': '', '1': '1'
    }  # yapf: disable
    rows = [Row(text, dict(top1=Value(90.0, (80.0, ))), 'run', text, command=text, sources=[text]) for text in texts]
    text = to_csv([Table('key', 'title', 'note', ['top1'], rows)])
    lines = list(csv.DictReader(io.StringIO(text, newline='')))
    for column in ('row', 'command', 'remark', 'sources'):
        assert [line[column] for line in lines] == list(texts.values())
    assert {line['difference'] for line in lines} == {'-10.0'}


def test_markdown(tables):
    text = to_markdown(tables, [Problem('a.json, line 3', 'is broken')], 'Made today.')
    lines = {line.split('|')[1].strip(): line for line in text.splitlines() if line.startswith('|')}
    cells = [cell.strip() for cell in lines['PeLK-T, 224px'].strip('|').split('|')]
    assert cells == ['PeLK-T, 224px', '82.6', '82.4 ± 0.28 (2)', '-0.2', '29', '', '', '5.6', '', '', 'run']
    assert 'not run' in lines['PeLK-S, 224px']
    assert f'`python tools/train.py configs/imagenet/{TINY}.py --cfg-options randomness.seed=1`' in text
    assert '- `a.json, line 3` is broken' in text


def test_html_escapes_its_texts(tables):
    text = to_html(tables, [Problem('<script>alert(1)</script>', '&')], 'Made today.')
    assert '&lt;script&gt;alert(1)&lt;/script&gt;' in text
    for unwanted in ('<script>alert', 'http://', 'https://'):
        assert unwanted not in text


def test_the_tool(tmp_path, digits, run_tool):
    config = dict(digits, train_cfg=dict(digits['train_cfg'], max_epochs=3))
    start = write_start(tmp_path / 'work_dirs', ATTO, config, epochs(1.0, 2.0, 96.0))
    with open(start / 'vis_data' / 'scalars.json', 'a') as file:
        file.write('{"half')
    (tmp_path / 'timing.json').write_text('{"inference": {}}')
    common, out = ('leaderboard.py', '--no-costs', '--out', tmp_path / 'out'), tmp_path / 'out'
    code, printed = run_tool(*common, tmp_path / 'work_dirs', '--throughput', tmp_path / 'timing.json')
    assert code == 0
    assert printed.splitlines()[-3:] == [f'{out}/leaderboard.{ending}' for ending in ('md', 'csv', 'html')]
    assert f'left out: {start}/vis_data/scalars.json, line 7 is broken or half-written' in printed
    assert 'is not a result of tools/benchmarks/throughput.py: it lacks environment, setting' in printed
    assert '96.0' in (out / 'leaderboard.md').read_text()
    for folder, message in (('work_dirs', 'leaderboard.md exists; choose another folder, or replace it by --overwrite'),
                            ('nothing', 'work_dirs must be folders, got')):
        code, printed = run_tool(*common, tmp_path / folder)
        assert code == 2
        assert message in printed
