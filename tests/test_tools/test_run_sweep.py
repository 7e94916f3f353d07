"""tools/misc/run_sweep.py: what it runs, skips and leaves out. Trainings and tests only leave their files behind."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from pelk_mm.engine.steps import StepFailed

TABLE6, TABLE1 = 'configs/ablations/table6_central_region', 'configs/ablations/table1_dense_vs_stripe'


class FakeSteps:
    """In the place of commands: writes what they would leave.

    Args:
        broken (str): Commands with this word fail.
    """

    def __init__(self, broken: str = 'nothing') -> None:
        self.broken = broken
        self.commands: list[list[str]] = []

    def run(self, log, *command) -> float:
        self.commands.append([str(word) for word in command])
        if any(self.broken in str(word) for word in command[:3]):
            raise StepFailed(f'{self.broken} is broken')
        work_dir = Path(command[command.index('--work-dir') + 1])
        if 'tools/train.py' in command:
            work_dir.mkdir(parents=True)
            checkpoint = work_dir / ('iter_80000.pth' if 'upernet' in work_dir.name else 'epoch_120.pth')
            checkpoint.touch()
            (work_dir / 'last_checkpoint').write_text(str(checkpoint))
        else:
            assert Path(command[3]).exists()
            (work_dir / 'now').mkdir(parents=True)
            key = 'mIoU' if 'upernet' in str(work_dir) else 'accuracy/top1'
            (work_dir / 'now' / 'now.json').write_text(json.dumps({key: 50.0}))
        return 0.0


@pytest.fixture
def sweep(load_tool, root, tmp_path, monkeypatch, capsys):
    """Runs the tool; what it printed, and the commands that it ran as (tool, config)."""
    tool = load_tool('misc/run_sweep.py')
    monkeypatch.chdir(root)

    def run(*args, broken='nothing'):
        monkeypatch.setattr(tool, 'STEPS', FakeSteps(broken))
        monkeypatch.setattr(sys, 'argv', ['run_sweep.py', *args, '--work-dir', str(tmp_path)])
        try:
            tool.main()
            code = None
        except SystemExit as error:
            code = error.code
        ran = [(Path(words[1]).stem, Path(words[2]).stem.split('_')[1]) for words in tool.STEPS.commands]
        return code, capsys.readouterr(), ran

    return run


CENTERS = ['center-1', 'center-3', 'center-5', 'center-7']


def test_runs_everything_once(sweep, tmp_path):
    code, output, ran = sweep(TABLE6)
    assert code is None
    assert ran == [(tool, center) for center in CENTERS for tool in ('train', 'test')]
    assert '|         80.8 |        50.0 |' in output.out
    (folder, ) = tmp_path.glob('table6_central_region_*')
    assert sorted(file.name for file in folder.iterdir()) == ['table.csv', 'table.json', 'table.md', 'table.png']
    code, output, ran = sweep(TABLE6)
    assert (code, ran) == (None, [])
    assert output.out.count('was finished before') == 4
    assert len(list(tmp_path.glob('table6_central_region_*'))) == 1


def test_goes_on_with_what_is_left(sweep, tmp_path):
    sweep(TABLE6)
    stopped, untested = (next(tmp_path.glob(f'runs/*center-{center}*')) for center in (3, 7))
    (stopped / 'last_checkpoint').write_text(str(stopped / 'epoch_60.pth'))
    for folder in (stopped, untested):
        (folder / 'test/now/now.json').unlink()
    _, output, _ = sweep(TABLE6, '--print-commands')
    commands = [shlex.split(line) for line in output.out.splitlines()]
    assert [(Path(words[1]).stem, Path(words[2]).stem.split('_')[1]) for words in commands] == [
        ('train', 'center-3'), ('test', 'center-3'), ('test', 'center-7')
    ]
    assert '--resume' in commands[0]
    _, output, ran = sweep(TABLE6, '--collect')
    assert ran == []
    assert output.out.count('not run') == 2


def test_a_failure_stops_only_what_needs_it(sweep):
    code, output, ran = sweep(TABLE1, broken='replk-51-tiny_32xb128')
    assert code == '2 of 8 trainings failed, see above.'
    assert ('test', '32xb128-120e') in ran
    assert len(ran) == 2 * 8 - 3
    assert 'replk-51-tiny_32xb128 is broken' in output.out
    assert 'replk-51-tiny_upernet_8xb4-80k_ade20k-512x512 needs' in output.out
    assert output.out.count('not run') == 2


@pytest.mark.parametrize('args, message', [
    (['configs/imagenet/nothing'], r'folder with a metafile.yml, got configs/imagenet/nothing. There are'),
    ([TABLE6, '--gpus', '0'], '--gpus must be a positive number'),
    ([TABLE6, '--gpus', '2', '--slurm', 'part'], 'goes without --slurm'),
    ([TABLE6, '--collect', '--print-commands'], 'not allowed with'),
])
def test_wrong_arguments(sweep, args, message):
    code, output, ran = sweep(*args)
    assert (code, ran) == (2, [])
    assert message in output.err
