"""tools/setup_env.sh refuses what it must before it makes anything, and keeps wheels apart that must not be mixed.

Nothing is installed here: every case ends before the first step.
"""

import os
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def setup_env(root, tmp_path):
    """Run the script, or a line of bash that uses its functions, in a clean environment."""

    def run(line: str = 'main', **variables) -> subprocess.CompletedProcess:
        environment = dict(PATH=os.environ['PATH'], HOME=str(tmp_path), VENV=str(tmp_path / 'venv'), MIN_FREE_GB='0')
        environment.update(variables)
        script = root / 'tools' / 'setup_env.sh'
        command = ['bash', str(script)] if line == 'main' else ['bash', '-c', f'source {script}; {line}']
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def stub(tmp_path, name: str, text: str) -> str:
    file = tmp_path / name
    file.write_text(f'#!/bin/sh\n{text}\n')
    file.chmod(0o755)
    return str(file)


def check_refusal(result, tmp_path, *messages: str):
    assert result.returncode == 1
    assert result.stdout == ''
    for message in messages:
        assert message in result.stderr
    assert not (tmp_path / 'venv').exists()
    assert not (tmp_path / '.cache').exists()


def stub_python(tmp_path, version: str, more: str = 'pass') -> str:
    """This Python under the name and version number of another, after running ``more``."""
    # sysconfig reads the version when it is imported; the headers are those of the Python that is there.
    change = f'sys.version_info = ({version.replace(".", ", ")}, 1)'
    code = f'import sys, sysconfig; {change}; {more}; exec(sys.stdin.read())'
    return stub(tmp_path, f'python{version}', f'exec {sys.executable} -c "{code}"')


@pytest.mark.parametrize('version', ['3.9', '3.14'])
def test_refuses_another_python(setup_env, tmp_path, version):
    python = stub_python(tmp_path, version)
    check_refusal(
        setup_env(PYTHON=python), tmp_path, f'{python} is Python {version}', 'for 3.10 to 3.13',
        'set PYTHON to a Python 3.10 to 3.13')


@pytest.mark.parametrize('version', ['3.10', '3.11', '3.12', '3.13'])
def test_takes_every_python_that_there_are_pins_for(setup_env, tmp_path, version):
    result = setup_env('check_machine; say "$PYTHON"', PYTHON=stub_python(tmp_path, version))
    assert (result.returncode, result.stdout, result.stderr) == (0, f'{tmp_path}/python{version}\n', '')


def test_chooses_the_python_that_is_tested_most(setup_env, tmp_path):
    for version in ('3.13', '3.12', '3.11', '3.10'):
        stub_python(tmp_path, version)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    chosen = [setup_env('check_machine; say "$PYTHON"', PATH=path).stdout]
    for version in ('3.11', '3.12', '3.13'):
        stub(tmp_path, f'python{version}', 'exit 1')
        chosen.append(setup_env('check_machine; say "$PYTHON"', PATH=path).stdout)
    assert chosen == ['python3.11\n', 'python3.12\n', 'python3.13\n', 'python3.10\n']


@pytest.mark.parametrize(('more', 'message'), [
    ('import importlib.util; importlib.util.find_spec = lambda name: None', 'install python3.12-venv'),
    ("import sysconfig; sysconfig.get_path = lambda name: '/nowhere'", 'install python3.12-dev'),
])
def test_names_the_package_that_a_python_lacks(setup_env, tmp_path, more, message):
    python = stub_python(tmp_path, '3.12', more)
    check_refusal(setup_env(PYTHON=python, MMCV_OPS='compiled'), tmp_path, message)


def test_headers_and_a_compiler_are_for_compiled_operators_only(setup_env, tmp_path):
    python = stub_python(tmp_path, '3.12', "import sysconfig; sysconfig.get_path = lambda name: '/nowhere'")
    result = setup_env('check_machine; say "$PYTHON"', PYTHON=python, CXX='/nowhere/c++')
    assert (result.returncode, result.stdout, result.stderr) == (0, f'{python}\n', '')


NO_PYTHON, NO_COMPILER = dict(PYTHON='/nowhere/python'), dict(CXX='/nowhere/c++', MMCV_OPS='compiled')
FULL_DISK = dict(MIN_FREE_GB='999999')


@pytest.mark.parametrize(('variables', 'messages'), [
    (NO_PYTHON, ['/nowhere/python does not run']),
    (NO_COMPILER, ['/nowhere/c++ not found']),
    (FULL_DISK, ['999999 GB asked for', 'GB free at']),
    (NO_PYTHON | NO_COMPILER | FULL_DISK, ['/nowhere/python', '/nowhere/c++', '999999']),
    (dict(STACK='mmcv'), ['STACK must be', "got 'mmcv'"]),
    (dict(MIN_FREE_GB='much'), ['MIN_FREE_GB must be', "got 'much'"]),
    (dict(MMCV_OPS='none'), ['MMCV_OPS must be', "got 'none'"]),
], ids=str)
def test_names_everything_that_is_missing_or_wrong(setup_env, tmp_path, variables, messages):
    check_refusal(setup_env(**variables), tmp_path, *messages)


def test_refuses_a_compiler_without_cxx17(setup_env, tmp_path):
    compiler = stub(tmp_path, 'c++', 'exit 1')
    result = setup_env(CXX=f'{compiler} -O2', MMCV_OPS='compiled')
    check_refusal(result, tmp_path, f'{compiler} -O2 does not compile and link C++17')


@pytest.mark.parametrize(('name', 'content', 'message'), [
    ('mine.txt', 'mine', 'was not made by this script'),
    ('pelk_mm_setup', 'stack=openmmlab\nmmcv_ops=torchvision\n',
     'holds STACK=openmmlab MMCV_OPS=torchvision, asked for is STACK=onedl MMCV_OPS=torchvision'),
    ('pelk_mm_setup', 'stack=onedl\nmmcv_ops=compiled\n',
     'holds STACK=onedl MMCV_OPS=compiled, asked for is STACK=onedl MMCV_OPS=torchvision'),
    # As version 0.1.0 wrote it, which always compiled.
    ('pelk_mm_setup', 'stack=onedl\nfingerprint=1234\nstate=complete\n',
     'holds STACK=onedl MMCV_OPS=compiled, asked for is STACK=onedl MMCV_OPS=torchvision'),
])
def test_does_not_change_what_is_there(setup_env, tmp_path, name, content, message):
    (tmp_path / 'venv').mkdir()
    (tmp_path / 'venv' / name).write_text(content)
    result = setup_env()
    assert result.returncode == 1
    assert message in result.stderr
    assert {file.name: file.read_text() for file in (tmp_path / 'venv').iterdir()} == {name: content}


def test_is_done_at_once_where_it_was_done(setup_env, tmp_path):
    (tmp_path / 'venv').mkdir()
    setup_env('stamp complete')
    result = setup_env(PYTHON='/nowhere/python')
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout == f'Environment {tmp_path}/venv (STACK=onedl, MMCV_OPS=torchvision) is ready.\n'


def test_goes_on_where_it_was_interrupted(setup_env, tmp_path):
    (tmp_path / 'venv').mkdir()
    setup_env('stamp incomplete')
    result = setup_env(PYTHON='/nowhere/python')
    assert result.returncode == 1
    assert '/nowhere/python does not run' in result.stderr


def test_pins_stack_and_place_are_part_of_the_stamp(setup_env, root, tmp_path):
    shutil.copytree(root / 'requirements', tmp_path / 'requirements')
    prints = [setup_env('fingerprint'), setup_env('fingerprint', STACK='openmmlab')]
    prints.append(setup_env('fingerprint', MMCV_OPS='compiled'))
    prints.append(setup_env(f'ROOT={tmp_path}; fingerprint'))
    (tmp_path / 'requirements' / 'torch.txt').write_text('torch==2.12.0\n')
    prints.append(setup_env(f'ROOT={tmp_path}; fingerprint'))
    assert len({result.stdout for result in prints}) == 5
    assert all(len(result.stdout) == 17 for result in prints)


def test_every_part_of_the_wheel_key_counts(setup_env):
    parts = ['onedl', 'onedl-mmcv==2.3.6', '2.11.0+cu130', 'cpython-311-x86_64-linux-gnu', 'x86_64-glibc2.36', 'cpu']
    others = ['openmmlab', 'onedl-mmcv==2.3.7', '2.12.0+cu130', 'cpython-312', 'aarch64-glibc2.36', 'cu130-sm90']
    keys = {setup_env(f'wheel_key {" ".join(parts)}').stdout}
    for index, other in enumerate(others):
        keys.add(setup_env(f'wheel_key {" ".join([*parts[:index], other, *parts[index + 1:]])}').stdout)
    assert len(keys) == 7
    assert 'onedl/onedl-mmcv-2.3.6-torch2.11.0+cu130-cpython-311-x86_64-linux-gnu-x86_64-glibc2.36-cpu\n' in keys


def test_a_step_reports_failure_with_its_log(setup_env, tmp_path):
    (tmp_path / 'venv').mkdir()
    result = setup_env('step "fetch" "seconds" sh -c "echo No matching distribution found for x; exit 3"')
    assert result.returncode == 1
    assert '==> fetch (seconds)' in result.stdout
    assert 'pip could not get a package' in result.stderr
    assert 'found for x' in (tmp_path / 'venv' / 'setup.log').read_text()


def test_only_an_intact_wheel_with_ops_counts(setup_env, tmp_path):
    (tmp_path / 'venv' / 'bin').mkdir(parents=True)
    (tmp_path / 'venv' / 'bin' / 'python').symlink_to(sys.executable)
    code = ('import sys, zipfile; wheel = zipfile.ZipFile(sys.argv[1], "w"); '
            'wheel.writestr("mmcv/__init__.py", "x" * 99); wheel.writestr(sys.argv[2], "x" * 99); wheel.close()')
    for name, member in (('with.whl', 'mmcv/_ext.cpython-311.so'), ('without.whl', 'mmcv/version.py')):
        subprocess.run([sys.executable, '-c', code, str(tmp_path / name), member], check=True)
    torn = tmp_path / 'torn.whl'
    torn.write_bytes((tmp_path / 'with.whl').read_bytes()[:-40])
    expected = {'with.whl': 0, 'without.whl': 1, 'torn.whl': 1, 'missing.whl': 1}
    assert {name: setup_env(f'has_ops {tmp_path / name}').returncode for name in expected} == expected
