"""Fixtures for every test. Tests of ``pelk_mm.ops`` and ``pelk_mm.layers`` also run where only PyTorch is installed."""

import gc
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec('hypothesis'):
    from hypothesis import settings

    # Of hypothesis' own profile for CI: the same examples in every run, no deadline, failures printed to be replayed.
    settings.register_profile('pelk_mm', settings.get_profile('ci'), max_examples=200)
    # A search that takes minutes, with other examples each time: pytest --hypothesis-profile=pelk_mm_search
    settings.register_profile('pelk_mm_search', settings.get_profile('pelk_mm'), max_examples=2000, derandomize=False)
    settings.load_profile('pelk_mm')

if find_spec('yapf'):
    # MMEngine formats a run's config for the log, two files and every checkpoint; yapf takes a second for a large one.
    from yapf.yapflib import yapf_api

    def format_once(text, format_code=yapf_api.FormatCode, formatted={}, **kwargs):  # noqa: B006
        if text not in formatted:
            formatted[text] = format_code(text, **kwargs)
        return formatted[text]

    yapf_api.FormatCode = format_once

if find_spec('mmcv'):
    # Tests import mmdet when they are collected.
    import pelk_mm.mmcv_ops  # noqa: F401


# Imports, models and traces make many objects that stay, which the collector would look through ever again.
gc.set_threshold(50_000, 20, 100)


def pytest_collection_finish():
    """Leave out what was imported until now when garbage is collected."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Let libraries release what they hold: Triton's reports what is left at the end."""
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    """Slow files first, so that parallel processes end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker('slow') is None)


@pytest.fixture(scope='session', autouse=True)
def both_stacks_alike():
    if find_spec('mmengine'):
        from pelk_mm import compat
        compat.setup()


@pytest.fixture(autouse=True)
def fresh_default_scope():
    """No test looks names up in the toolbox of the test before it."""
    yield
    if 'mmengine' in sys.modules:
        from mmengine.registry import DefaultScope
        DefaultScope._instance_dict.clear()


@pytest.fixture
def no_safe_globals():
    """Run with PyTorch's own allow-list, and put back what was there."""
    import torch
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


@pytest.fixture
def run_tool(root, monkeypatch, capfd):
    """Runs a tool, named by its path under ``tools``, as a user does; returns its exit code and what it prints.

    What goes to stderr stands first, so that the last lines are the output's. Exceptions come through.
    """
    import torch

    def run(name, *arguments):
        path = str(root / 'tools' / name)
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        capfd.readouterr()
        code = 0
        # Some tools turn gradients off, which would last.
        with torch.enable_grad():
            try:
                runpy.run_path(path, run_name='__main__')
            except SystemExit as error:
                code = error.code or 0
        out, err = capfd.readouterr()
        return code, err + out

    return run


@pytest.fixture
def without_files(tmp_path):
    """Make a copy of an installed package, by links, that lacks the files of some patterns; returns its folder."""

    def copy(package, *patterns):
        source = Path(find_spec(package).origin).parent
        folder = tmp_path / 'site' / package
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != '__pycache__' and not any(map(file.match, patterns)):
                (folder / file.name).symlink_to(file)
        return folder

    return copy


@pytest.fixture
def mmcv_without_ops(without_files) -> Path:
    """The folder of a package mmcv that has no operators, compiled or installed by us."""
    return without_files('mmcv', '_ext.*')


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parent.parent
