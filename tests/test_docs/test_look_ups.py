"""The table "Where to find" of CONTRIBUTING.md names files and objects that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def look_ups() -> dict[str, list[tuple[str, str]]]:
    """Return the steps of each question, file and name."""
    section = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8').split('## Where to find')[1].split('\n## ')[0]
    rows = re.findall(r'^\| ([^|]+\?) \|(.+)\|$', section, re.MULTILINE)
    return {question: re.findall(r'`([\w./-]+\.py)`: `([\w.]+)`', steps) for question, steps in rows}


def names(tree: ast.AST) -> set[str]:
    """Return what a file defines, imports and passes by keyword; methods as ``Class.method``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f'{node.name}.{part.name}' for part in node.body if isinstance(part, ast.FunctionDef)}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.keyword):
            found.add(node.arg)
    return found


def test_all_fifteen_are_there():
    assert len(look_ups()) == 15


@pytest.mark.parametrize(('question', 'steps'), look_ups().items(), ids=str)
def test_a_look_up_takes_two_steps_at_most(question, steps):
    assert 1 <= len(steps) <= 2
    for file, name in steps:
        assert name in names(ast.parse((ROOT / file).read_text(encoding='utf-8'))), f'{file} has no {name}'
