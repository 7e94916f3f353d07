"""Tools as modules."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def load_tool(root):
    """Imports a tool, named by its path under ``tools``."""

    def load(path):
        spec = importlib.util.spec_from_file_location(f'{Path(path).stem}_tool', root / 'tools' / path)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def printed_by(run_tool):
    """Runs a tool, which has to end with an exit code; returns what it prints."""

    def run(name, *arguments, code=0):
        ended, printed = run_tool(name, *arguments)
        assert ended == code, printed
        return printed

    return run
