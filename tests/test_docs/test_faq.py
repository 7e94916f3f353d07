"""The errors that docs/faq.md answers are ones that the code raises, word by word."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Raised by PyTorch, mmcv, mmengine, OpenCV and Python.
FOREIGN = (
    "ModuleNotFoundError: No module named 'mmcv._ext'", 'undefined symbol', 'mmcv/_ext...so',
    'RuntimeError: operator torchvision::nms does not exist', "No module named 'pkg_resources'",
    'ImportError: libGL.so.1: cannot open shared object file', "KeyError: 'PeLK is not in the mmseg::model registry'",
    'mmengine does not support to load pelk_mm config.',
    'mmsegmentation is not installed, please install mmsegmentation manually',
    'Expected 3D (unbatched) or 4D input to conv2d', 'mat1 and mat2 shapes cannot be multiplied')


def quoted_errors() -> list:
    headings = re.findall(r'^### (.+)', (ROOT / 'docs/faq.md').read_text(encoding='utf-8'), re.MULTILINE)
    return [error for heading in headings for error in re.findall(r'`([^`]+)`', heading) if ' ' in error]


def message(node: ast.AST) -> str:
    """A string of a source file; what is filled in when it runs stands as ``...``."""
    if isinstance(node, ast.JoinedStr):
        return ''.join(part.value if isinstance(part, ast.Constant) else '...' for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ''


@cache
def messages() -> str:
    files = [file for folder in ('pelk_mm', 'tools') for file in sorted((ROOT / folder).rglob('*.py'))]
    found = [message(node) for file in files for node in ast.walk(ast.parse(file.read_text(encoding='utf-8')))]
    return '\n'.join([*found, (ROOT / 'tools/setup_env.sh').read_text(encoding='utf-8')])


@pytest.mark.parametrize('error', [error for error in quoted_errors() if error not in FOREIGN])
def test_the_error_is_one_of_ours(error):
    # Names that stand in the place of what is filled in, and lists.
    text = re.sub(r"'tinny'|'tiny'|\[\.\.\.\]|'triton'|\bPeLK\b|setup_env: ", '...', error)
    parts = [part.strip() for part in text.split('...') if len(part.strip()) > 2]
    assert parts
    assert [part for part in parts if part not in messages()] == []


def test_errors_are_found():
    assert len(quoted_errors()) >= 20
    assert set(FOREIGN) - {'mmcv/_ext...so'} <= set(quoted_errors())
