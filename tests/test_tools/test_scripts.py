"""Shell scripts, Makefile and print_config.py. Commands that would start processes are replaced by ones that echo."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / 'tools').rglob('*.sh')), ROOT / '.ci' / 'run']


def run(*command, cwd=None, **variables) -> subprocess.CompletedProcess:
    # Of an activated environment and of the make that runs these tests, nothing.
    dropped = {'VIRTUAL_ENV', 'CONDA_PREFIX', 'PYTHON', 'MAKEFLAGS', 'MAKELEVEL', 'MFLAGS'}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    return subprocess.run([str(part) for part in command],
                          cwd=cwd, env=dict(environment, **variables), capture_output=True, text=True)


@pytest.fixture
def echo(tmp_path):
    """An executable that prints its arguments, one a line."""

    def make(path: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        file.chmod(0o755)
        return file

    return make


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.name)
def test_shell_scripts_parse(script):
    assert run('bash', '-n', script).returncode == 0


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_missing_arguments_print_the_usage(name):
    result = run('bash', ROOT / f'tools/{name}.sh', 'config.py')
    assert result.returncode == 2
    assert result.stderr.startswith(f'usage: bash tools/{name}.sh')


def test_dist_train_hands_everything_on_to_torchrun(echo):
    variables = dict(PYTHON=str(echo('python')), NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    result = run('bash', ROOT / 'tools/dist_train.sh', 'my config.py', '8', '--cfg-options', 'a=[1, 2]', **variables)
    assert result.stdout.splitlines() == [
        f'{ROOT}/tools/_torchrun.py', '--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=1234',
        '--nproc_per_node=8', f'{ROOT}/tools/train.py', 'my config.py', '--cfg-options', 'a=[1, 2]', '--launcher',
        'pytorch'
    ]


def test_dist_test_runs_on_this_machine_by_default(echo):
    result = run('bash', ROOT / 'tools/dist_test.sh', 'c.py', 'w.pth', '4', '--tta', PYTHON=str(echo('python')))
    assert result.stdout.splitlines()[1:] == [
        '--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1', '--master_port=29500', '--nproc_per_node=4',
        f'{ROOT}/tools/test.py', 'c.py', 'w.pth', '--tta', '--launcher', 'pytorch'
    ]


def test_slurm_train_asks_for_the_resources(echo):
    path = f'{echo("bin/srun").parent}:{os.environ["PATH"]}'
    variables = dict(PATH=path, PYTHON='python3', GPUS='16', SRUN_ARGS='--time 10')
    result = run('bash', ROOT / 'tools/slurm_train.sh', 'part', 'job', 'c.py', '--amp', **variables)
    assert result.stdout.splitlines() == [
        '-p', 'part', '--job-name=job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8', '--cpus-per-task=5',
        '--kill-on-bad-exit=1', '--time', '10', 'python3', '-u', f'{ROOT}/tools/train.py', 'c.py', '--amp',
        '--launcher', 'slurm'
    ]


def test_an_active_environment_comes_before_dot_venv(echo, tmp_path):
    shutil.copytree(ROOT / 'tools', tmp_path / 'tools', ignore=shutil.ignore_patterns('__pycache__'))
    own, active = echo('.venv/bin/python'), echo('active/bin/python')
    for path in (own, active):
        path.write_text(f'#!/bin/sh\necho {path}\n')
    script = tmp_path / 'tools' / 'dist_train.sh'
    path = f'{active.parent}:{os.environ["PATH"]}'
    assert Path(run('bash', script, 'c.py', '1', PATH=path).stdout.strip()) == own
    assert Path(run('bash', script, 'c.py', '1', PATH=path, VIRTUAL_ENV='/active').stdout.strip()) == active
    assert Path(run('bash', script, 'c.py', '1', PYTHON=str(active)).stdout.strip()) == active


def test_print_config_prints_a_complete_config_and_overwrites_nothing(tmp_path, run_tool, printed_by):
    command = ('misc/print_config.py', ROOT / 'configs/digits/pelk-atto_1xb64_digits.py', '--save-path',
               tmp_path / 'out.py')
    printed = printed_by(*command, '--cfg-options', 'train_dataloader.batch_size=7')
    assert "type='pelk_mm.PeLK'" in printed
    saved = Config.fromfile(tmp_path / 'out.py')
    assert saved.train_dataloader.batch_size == 7
    assert saved.default_scope == 'mmpretrain'
    (tmp_path / 'out.py').write_text('mine = 1\n')
    assert run_tool(*command)[0] == 2
    assert (tmp_path / 'out.py').read_text() == 'mine = 1\n'


@pytest.mark.parametrize(('target', 'command'), [('quickstart', 'tools/quickstart.py'), ('test', '-m pytest tests')])
def test_make_builds_the_environment_first(target, command):
    lines = run('make', '-n', target, 'STACK=openmmlab', 'VENV=other', cwd=ROOT).stdout.splitlines()
    assert lines[0] == f"STACK='openmmlab' MMCV_OPS='torchvision' VENV='{ROOT}/other' bash tools/setup_env.sh"
    assert lines[1].removeprefix('OMP_NUM_THREADS=1 ').startswith(f'{ROOT}/other/bin/python {command}')


def test_make_clean_keeps_what_the_user_made(tmp_path):
    shutil.copy(ROOT / 'Makefile', tmp_path)
    kept = ['work_dirs/run/epoch_1.pth', 'data/image.png', '.venv/bin/python', 'pelk_mm/version.py', 'configs/a.py']
    removed = ['build/x', 'pelk_mm/__pycache__/version.pyc', 'tools/misc/__pycache__/a.pyc', '.pytest_cache/x']
    for name in [*kept, *removed, 'tests/a.py']:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert run('make', 'clean', cwd=tmp_path).returncode == 0
    assert all((tmp_path / name).exists() for name in kept)
    assert not any((tmp_path / name).exists() for name in removed)
