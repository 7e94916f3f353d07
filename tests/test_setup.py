"""The package installs without PyTorch being imported, and its wheel carries configs and tools."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from packaging.requirements import Requirement

PYTHONS = ('3.10', '3.11', '3.12', '3.13')


@pytest.fixture(scope='module')
def sources(root, tmp_path_factory):
    """A copy of the sources, to build from."""
    copy = tmp_path_factory.mktemp('sources')
    for file in root.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    for name in ('pelk_mm', 'configs', 'tools', 'requirements', 'tests'):
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    return copy


@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory):
    """A wheel built from the sources."""
    out = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index']
    subprocess.run([*command, '--wheel-dir', str(out), str(sources)], check=True, capture_output=True, text=True)
    return zipfile.ZipFile(next(out.glob('pelk_mm-*.whl')))


@pytest.fixture(scope='module')
def csrc(root):
    """The C++ sources that are compiled at first use."""
    files = {str(file.relative_to(root)) for file in (root / 'pelk_mm').rglob('csrc/*')}
    assert len(files) > 5
    return files


def test_wheel_carries_all_configs_and_the_tools(wheel, root):
    packed = {name for name in wheel.namelist() if name.startswith('pelk_mm/.mim/')}
    expected = {'pelk_mm/.mim/model-index.yml'}
    for folder in ('configs', 'tools'):
        expected |= {
            f'pelk_mm/.mim/{file.relative_to(root)}'
            for file in (root / folder).rglob('*') if file.is_file() and '__pycache__' not in file.parts
        }
    assert packed == expected
    assert not [name for name in wheel.namelist() if name.startswith(('configs/', 'tests/', 'tools/'))]


def test_configs_resolve_from_an_installed_wheel(wheel, root, tmp_path):
    wheel.extractall(tmp_path / 'site')
    name = 'digits/pelk-atto_upernet_1xb8-1600it_digits-128x128.py'
    (tmp_path / 'config.py').write_text(f"_base_ = 'pelk_mm::{name}'\n")
    code = ('import pelk_mm; from pelk_mm.compat import setup; setup(); from mmengine.config import Config; '
            'print(pelk_mm.__file__, Config.fromfile("config.py").model.backbone.type)')
    environment = dict(os.environ, PYTHONPATH=str(tmp_path / 'site'))
    result = subprocess.run([sys.executable, '-c', code],
                            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert result.stdout.split()[-2:] == [str(tmp_path / 'site' / 'pelk_mm' / '__init__.py'), 'pelk_mm.PeLK']


def test_wheel_carries_every_module(wheel, root):
    modules = {str(file.relative_to(root)) for file in (root / 'pelk_mm').rglob('*.py')}
    assert modules == {name for name in wheel.namelist() if name.endswith('.py') and '/.mim/' not in name}


def test_wheel_carries_what_modules_read(wheel, csrc):
    read = {'pelk_mm/analysis/paper_tables.json', 'pelk_mm/reports/page.html', *csrc}
    assert read <= set(wheel.namelist())


def test_wheel_forces_no_stack(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    lines = wheel.read(metadata).decode().splitlines()
    required = [line.partition(': ')[2] for line in lines if line.startswith('Requires-Dist: ')]
    assert [line for line in required if 'extra ==' not in line] == ['torch>=2.8', 'numpy']
    for stack, package in (('onedl', 'onedl-mmcv==2.3.6'), ('openmmlab', 'mmcv==2.1.0')):
        assert any(line.startswith(package) and f'extra == "{stack}"' in line for line in required)
    for python, package in zip(PYTHONS, ('scikit-learn==1.7.2', *['scikit-learn==1.9.1'] * 3)):
        environment = dict(extra='digits', python_version=python)
        chosen = [str(item) for item in map(Requirement, required) if item.marker and item.marker.evaluate(environment)]
        assert [name.partition(';')[0] for name in chosen] == [package]


def test_links_of_the_source_tree_lead_to_the_configs(root):
    mim = root / 'pelk_mm' / '.mim'
    assert {link.name: link.resolve() for link in mim.iterdir()} == {
        name: root / name
        for name in ('configs', 'tools', 'model-index.yml')
    }


def test_setup_imports_no_torch(root):
    tree = ast.parse((root / 'setup.py').read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {'shutil', 'pathlib', 'setuptools', 'setuptools.command.build_py'}


def test_the_build_warns_of_nothing(sources, csrc, tmp_path):
    """A source distribution has no tests, the wheel an SPDX licence; neither build meets a deprecation."""
    code = f'from setuptools.build_meta import *; build_sdist("{tmp_path}"); build_wheel("{tmp_path}")'
    result = subprocess.run([sys.executable, '-W', 'error::DeprecationWarning:setuptools', '-c', code],
                            cwd=sources, check=True, capture_output=True, text=True)
    assert 'Deprecat' not in result.stdout + result.stderr
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert not [name for name in names if name.startswith('tests/')]
    assert {'setup.py', 'requirements/onedl.txt', 'pelk_mm/mmcv_ops/extension.py', 'tools/train.py', *csrc} <= names
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as built:
        metadata = built.read(next(name for name in built.namelist() if name.endswith('METADATA'))).decode()
    assert 'License-Expression: Apache-2.0' in metadata
    assert 'License ::' not in metadata


def test_pins_of_the_requirement_files_do_not_contradict(root):
    pins = {}
    for file in (root / 'requirements').glob('*.txt'):
        if file.name == 'torch_compiled_mmcv.txt':
            # In the place of torch.txt.
            continue
        stack = 'openmmlab' if 'openmmlab' in file.name else 'onedl' if 'onedl' in file.name else None
        for line in file.read_text().splitlines():
            if '==' not in line or line.startswith('#'):
                continue
            requirement = Requirement(line)
            for python in PYTHONS:
                environment = dict(python_version=python, python_full_version=f'{python}.9')
                if requirement.marker and not requirement.marker.evaluate(environment):
                    continue
                for key in [stack] if stack else ['onedl', 'openmmlab']:
                    name = requirement.name.lower().replace('_', '-')
                    pins.setdefault((key, python, name), set()).add(str(requirement.specifier))
    assert {key: versions for key, versions in pins.items() if len(versions) > 1} == {}
    # What is pinned for one Python is for the others, except what only the dependencies of one ask for.
    names = {python: {name for _, other, name in pins if other == python} for python in PYTHONS}
    assert names['3.11'] == names['3.12'] == names['3.13']
    assert names['3.10'] - names['3.11'] == {'coloredlogs', 'exceptiongroup', 'humanfriendly', 'tomli'}
    assert names['3.11'] - names['3.10'] == {'lazy-importer'}
