"""Fixtures for every test. Tests of ``pelk_mm.ops`` and ``pelk_mm.layers`` also run where only PyTorch is installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


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


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parent.parent
