"""Names with blanks, quotes, substitutions and the like are names for every tool, and never commands or markup."""

import csv
import io
import os
import re
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction

from pelk_mm.checkpoints.publish import publish_file
from pelk_mm.engine.launch import load_config, run
from pelk_mm.reports import Problem, Row, Table, Value, to_csv, to_html, to_markdown

from ..helpers.toy_files import write_toy_module

ROOT = Path(__file__).resolve().parents[2]
# Every one of them would make a file called "ran", were it not taken for a name.
NAMES = [
    'a b', "it's", 'a"b', '$(touch ran)', '`touch ran`', '; touch ran;', '| touch ran', '&& touch ran', 'a\nb', '-rf',
    '--config', '%s%d%n', '{0}', '*', '~', 'ünïcödé 大', '<img src=x onerror=alert(1)>',
    "'; import os; os.mkdir('ran') #"
]


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not any(path.name == 'ran' for path in tmp_path.rglob('*'))


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_shell_scripts_hand_every_name_on(tmp_path, script):
    # Prints its arguments, each behind a null byte, as no name holds one.
    python = tmp_path / 'my python'
    python.write_text('#!/bin/sh\nprintf "\\0%s" "$@"\n')
    python.chmod(0o755)
    config, checkpoint = '$(touch ran).py', "a b'.pth"
    given = [config, *([checkpoint] if script == 'dist_test.sh' else []), '2', '--work-dir', *NAMES]
    result = subprocess.run(['bash', str(ROOT / 'tools' / script), *given],
                            env=dict(os.environ, PYTHON=str(python)), capture_output=True, text=True, check=True)
    passed = result.stdout.split('\0')
    assert passed[-len(NAMES) - 2:-2] == NAMES
    assert config in passed
    assert script == 'dist_train.sh' or checkpoint in passed


@pytest.mark.parametrize('name', NAMES)
def test_options_are_values(tmp_path, name):
    (tmp_path / 'plain.py').write_text('a = 1\n')
    namespace = Namespace()
    DictAction(['--cfg-options'], 'options', nargs='+')(None, namespace, [f'label={name}', 'number=__import__("os")'])
    cfg = load_config('plain.py', namespace.options)
    # MMEngine leaves out blanks, and quotes at either end.
    assert cfg.label == name.replace(' ', '').strip('"\'')
    assert cfg.number == '__import__("os")'


@pytest.mark.parametrize('name', NAMES)
def test_published_files(tmp_path, name):
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / f'{name}.pth')
    path, *_ = publish_file(str(tmp_path / f'{name}.pth'), str(tmp_path / 'new' / f'{name}.pth'))
    assert path.parent == tmp_path / 'new'
    assert path.name.startswith(f'{name}-')
    assert [file.name for file in (tmp_path / 'new').iterdir()] == [path.name]


@pytest.mark.parametrize('name', ['~', """-a "b' `touch ran`; touch ran; $(touch ran)\n&& %s {0} * <大>"""])
def test_work_directories(tmp_path, name, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    toy = write_toy_module(tmp_path, 'odd_toys')
    Config(dict(toy, train_cfg=dict(by_epoch=True, max_epochs=1))).dump('odd.py')
    run(load_config('odd.py', work_dir=str(tmp_path / 'work' / name)), 'train')
    assert [path.name for path in (tmp_path / 'work').iterdir()] == [name]
    assert (tmp_path / 'work' / name / 'epoch_1.pth').is_file()


def test_the_leaderboard_escapes_names():
    rows = [
        Row(name, dict(top1=Value(None, (97.3, ))), 'run', remark=name, config=name, hash='ab', command=name,
            environment=name, sources=[name]) for name in NAMES
    ]
    tables = [Table('digits', NAMES[-2], NAMES[-2], ['top1'], rows)]
    problems = [Problem(name, name) for name in NAMES]
    page = to_html(tables, problems, NAMES[-2])
    assert '<img' not in page
    assert '&lt;img src=x onerror=alert(1)&gt;' in page
    markdown = to_markdown(tables, problems, 'Made.')
    outside_code = ''.join(markdown.split('`')[::2])
    assert '<img' not in outside_code
    lines = [line for line in markdown.splitlines() if line.startswith('|')]
    assert len(lines) == len(NAMES) + 2
    # Before what a spreadsheet would take for a formula stands an apostrophe; a row has one line.
    shown = [row['row'] for row in csv.DictReader(io.StringIO(to_csv(tables), newline=''))]
    assert [re.sub(r"^'(?=[=+\-@\t\r])", '', text) for text in shown] == [' '.join(name.splitlines()) for name in NAMES]


def test_a_config_that_begins_with_a_dash(tmp_path, printed_by):
    (tmp_path / '-odd $(touch ran).py').write_text('a = 1\n')
    printed = printed_by('misc/print_config.py', '--', '-odd $(touch ran).py')
    assert 'a = 1' in printed
