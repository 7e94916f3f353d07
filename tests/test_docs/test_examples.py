"""Every Python block of the README and of the documentation runs, and prints what the page says it prints."""

import ast
import importlib
import io
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

# The forks print a line when they are first imported, which a page does not show.
import mmdet.datasets  # noqa: F401
import mmpretrain.datasets  # noqa: F401
import mmseg.datasets  # noqa: F401
import pytest
from mmengine.config import Config

from pelk_mm.analysis import build_model

from ..helpers.pages import blocks_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')), *sorted((ROOT / 'pelk_mm').rglob('*.md'))]


def python_blocks(page: Path) -> list:
    """Of each block the line, the source, and what it prints: the block ``text`` right behind it, '' for none."""
    blocks, end = [], -2
    for block in blocks_of(page):
        if block.language == 'python':
            blocks.append([block.start + 1, block.text, ''])
            end = block.end
        elif block.language == 'text' and block.start - end <= 1:
            blocks[-1][2] = block.text
    return blocks


# A block that imports one of these is left out where it is not installed.
OPTIONAL = {'segmentation_models_pytorch', 'timm', 'transformers', 'ultralytics'}


def optional_imports(source: str) -> set:
    """Those of the optional packages that a block imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition('.')[0])
    return names & OPTIONAL


PAGES_WITH_PYTHON = [page for page in PAGES if '_build' not in page.parts and python_blocks(page)]


def test_there_are_pages():
    assert ROOT / 'README.md' in PAGES_WITH_PYTHON
    assert len(PAGES_WITH_PYTHON) >= 6


@pytest.mark.parametrize('page', PAGES_WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('PELK_MM_BACKEND', raising=False)
    monkeypatch.setenv('YOLO_CONFIG_DIR', str(tmp_path))
    namespace: dict = {}
    missing: set = set()
    for line, source, expected in python_blocks(page):
        packages = optional_imports(source)
        lacking = {package for package in packages if find_spec(package) is None}
        if lacking:
            missing |= lacking
            continue
        # Some print a line when they are first imported.
        for package in packages:
            importlib.import_module(package)
        # Line numbers of a traceback are those of the page.
        code = compile('\n' * line + source, str(page), 'exec')
        printed = io.StringIO()
        with redirect_stdout(printed):
            if '_base_' in code.co_names:
                check_config(source, tmp_path / 'my_config.py')
            else:
                exec(code, namespace)
        assert printed.getvalue() == expected, f'{page}, line {line}'
    if missing:
        pytest.skip(f'the blocks that import {", ".join(sorted(missing))} were left out')


def check_config(source: str, file: Path) -> None:
    """Parse a config and build its model."""
    file.write_text(source, encoding='utf-8')
    build_model(Config.fromfile(file))
