"""Broken files in work directories are named and left out, and no number is invented."""

import json
import math
import shutil
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pelk_mm.reports import METRICS, Leaderboard, find_runs, read_catalogue, to_csv

from ..helpers.strategies import damaged

TIME, LATER = '20261122_011013', '20261122_020000'
CONFIG = """model = dict(
    backbone=dict(arch='tiny', type='pelk_mm.PeLK'))
train_cfg = dict(by_epoch=True, max_epochs=2)
load_from = None
"""
# Every number that is read from a damaged run must stand in its files.
RECORDS = [{'accuracy/top1': 71.25, 'step': 1}, {'loss': 1.5, 'density': 0.6}, {'accuracy/top1': 83.5, 'step': 2}]
LINES = ''.join(json.dumps(record) + '\n' for record in RECORDS)
TEST = json.dumps({'accuracy/top1': 84.75})
METAFILE = """Models:
  - Name: pelk-tiny
    Config: configs/pelk-tiny.py
    Metadata: {Training Data: ImageNet-1k}
    Results: [{Task: x, Dataset: y, Source: 'the paper, Table 2', Metrics: {Top 1 Accuracy: 82.6}}]
"""
UNFINISHED = b'Models:\n  - Name: ['

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10**308, 10**320), st.floats(),
                    st.text(max_size=6))
KEYS = st.sampled_from(['accuracy/top1', 'val/mIoU', 'coco/bbox_mAP', 'coco/segm_mAP', 'step', 'density', 'loss'])
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3),
                                                       st.dictionaries(st.text(max_size=4), inner, max_size=3)),
                      max_leaves=6)
# Makes a file in the working directory, if it is run.
PLANTED = 'open("ran", "w")'
# As Python writes it: names, calls and all.
CODE = st.recursive(
    st.sampled_from(['1', '2.5', 'None', 'True', "'a'", "'a\\x00.pth'", "'work/epoch_3.pth'", '-1', '1j', 'nan', '...',
                     '10**9', 'x', PLANTED, '{[]: 1}', "f'{1}'", '{1, 2}', '()', '"\\ud800"', 'dict(1)']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda parts: f'[{", ".join(parts)}]'),
        st.tuples(inner, inner).map(lambda parts: f'dict(max_epochs={parts[0]}, module={parts[1]})'),
        st.tuples(inner, inner).map(lambda parts: f'{{{parts[0]}: {parts[1]}}}'),
        st.tuples(inner, inner).map(lambda parts: f'dict({{{parts[0]}: 1}}, max_iters={parts[1]})')),
    max_leaves=5)
SETTINGS = ['model', 'train_cfg', 'load_from', 'val_dataloader', 'resume', 'import os; b']
CONFIGS = st.dictionaries(st.sampled_from(SETTINGS), CODE, max_size=4).map(
    lambda parts: '\n'.join(f'{name} = {code}' for name, code in parts.items()))


def broken(content: str) -> st.SearchStrategy[bytes]:
    """A file that may be damaged, or intact beside others that are."""
    return damaged(content.encode(), least=0, most=4)


def text(content) -> bytes:
    return content.encode('utf-8', 'surrogatepass')


JSON_LINES = st.lists(
    st.one_of(
        st.dictionaries(KEYS, SCALARS, max_size=4).map(json.dumps), VALUES.map(json.dumps), st.text(max_size=20),
        st.sampled_from(['[' * 5000, '{"a":' * 5000, 'NaN', '9' * 5000, 'Infinity', '"\\ud800"'])),
    max_size=5).map('\n'.join).map(text)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of the work directory and the metafile, and the one that tests work in."""
    path = tmp_path_factory.mktemp('runs')
    with pytest.MonkeyPatch.context() as context:
        context.chdir(path)
        yield path


def read(folder, config: bytes, scalars: bytes, test: bytes, log: bytes = b''):
    """Read the runs and problems of a work directory with a training and a test that hold these files."""
    shutil.rmtree(folder / 'run', ignore_errors=True)
    for time in (TIME, LATER):
        (folder / 'run' / time / 'vis_data').mkdir(parents=True)
        (folder / 'run' / time / 'vis_data/config.py').write_bytes(config)
        (folder / 'run' / time / f'{time}.log').write_bytes(log)
    (folder / 'run' / TIME / 'vis_data/scalars.json').write_bytes(scalars)
    (folder / 'run' / LATER / f'{LATER}.json').write_bytes(test)
    runs, problems = find_runs([folder / 'run'])
    assert all(str(folder) in problem.where and problem.text for problem in problems)
    for run in runs:
        assert len(run.hash) == 8
        assert run.metrics.keys() <= METRICS.keys()
        assert all(math.isfinite(value) and not isinstance(value, bool) for value in run.metrics.values())
        assert run.progress is None or all(type(number) is int for number in run.progress)
        assert isinstance(run.is_finished, bool)
    tables = Leaderboard(runs, [], folder).own_tables()
    assert sum(len(table.rows) for table in tables) == len(runs)
    assert to_csv(tables).count('\n') == 1 + sum(len(table.quantities) * len(table.rows) for table in tables)
    return runs, problems


def test_intact_files(folder):
    runs, problems = read(folder, CONFIG.encode(), LINES.encode(), TEST.encode())
    assert problems == []
    assert [(run.metrics, run.progress, run.density) for run in runs] == [(dict(top1=84.75), (2, 2), 0.6)]


@given(broken(CONFIG), broken(LINES), broken(TEST), st.binary(max_size=60))
def test_damaged_files(folder, config, scalars, test, log):
    runs, problems = read(folder, config, scalars, test, log)
    written = scalars + test
    for run in runs:
        for value in run.metrics.values():
            # repr may write a number otherwise than the file, as 8e4 and 80000.0: then it is in there as a number.
            assert repr(value).encode() in written or value in numbers(written)
    # A file that does not parse is never silent.
    if parse(test.decode(errors='replace')) is None and config == CONFIG.encode():
        assert any(problem.where.endswith(f'{LATER}.json') for problem in problems)


def parse(content: str):
    with suppress(ValueError, RecursionError):
        return json.loads(content)


def numbers(content: bytes) -> set:
    """Return every number that is the value of a key in some object of a file."""
    records = map(parse, content.decode(errors='replace').replace('}{', '}\n{').splitlines())
    return {value for record in records if isinstance(record, dict)
            for value in record.values() if isinstance(value, (int, float))}


@given(CONFIGS.map(text), JSON_LINES, JSON_LINES)
def test_odd_contents(folder, config, scalars, test):
    read(folder, config, scalars, test)
    assert not (folder / 'ran').exists()


def test_the_planted_code_makes_a_file_if_it_is_run(folder):
    eval(PLANTED).close()
    (folder / 'ran').unlink()


@given(st.dictionaries(KEYS, SCALARS, max_size=5))
def test_metrics_are_those_of_the_file(folder, record):
    """Booleans, texts, NaN and integers too large for float do not count."""
    runs, _ = read(folder, CONFIG.encode(), b'', text(json.dumps(record)))
    factors = {'accuracy/top1': ('top1', 1), 'val/mIoU': ('miou', 1), 'coco/bbox_mAP': ('ap_box', 100),
               'coco/segm_mAP': ('ap_mask', 100)}
    expected = {}
    for key, (name, factor) in factors.items():
        value = record.get(key)
        if type(value) in (int, float) and abs(value) < 1e300:
            expected[name] = value * factor
    assert all(run.metrics.items() >= expected.items() for run in runs if run.metrics)
    assert not expected or any(run.metrics for run in runs)


@settings(max_examples=100)
@example(UNFINISHED)
@given(broken(METAFILE))
def test_damaged_metafiles(folder, content):
    (folder / 'configs').mkdir(exist_ok=True)
    (folder / 'configs/metafile.yml').write_bytes(content)
    entries, problems = read_catalogue(folder)
    assert all('metafile.yml' in problem.where for problem in problems)
    assert problems or content != UNFINISHED
    for entry in entries:
        assert all(repr(value).rstrip('0').rstrip('.').encode() in content for value in entry.figures.values())


def test_odd_names_and_unreadable_files(folder, monkeypatch):
    name = 'r\udcffun <b>"\'$(touch ran)\n'
    shutil.rmtree(folder / 'run', ignore_errors=True)
    start = folder / 'run' / name / TIME
    (start / 'vis_data').mkdir(parents=True)
    (start / 'vis_data/config.py').write_text(CONFIG)
    (start / 'vis_data/scalars.json').write_text(LINES)
    (run, ), problems = find_runs([folder / 'run'])
    assert (run.name, run.metrics, problems) == (name, dict(top1=83.5), [])

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('pathlib.Path.read_text', refuse)
    runs, problems = find_runs([folder / 'run'])
    assert runs == []
    assert [problem.text for problem in problems] == ['[Errno 13] Permission denied']
