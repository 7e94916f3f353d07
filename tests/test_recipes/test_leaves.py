"""No config repeats a value that it inherits: whoever changes the base then changes all of its leaves."""

import ast
import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

from ..helpers.config_tree import ROOT

LEAVES = [path for path in sorted((ROOT / 'configs').rglob('*.py')) if '_base_ =' in path.read_text()]


def repeated(own: dict, inherited: dict, place: str = '') -> Iterator[str]:
    """Return the places where a value of a config is that of its base."""
    for key, value in own.items():
        # A config by itself must import what it names, and a dict that replaces another one repeats nothing.
        if key not in inherited or key == 'custom_imports':
            continue
        if not isinstance(value, dict):
            if value == inherited[key]:
                yield f'{place}{key}={value!r}'
        elif isinstance(inherited[key], dict) and not value.get('_delete_'):
            yield from repeated(value, inherited[key], f'{place}{key}.')


@pytest.fixture(scope='module')
def inherit(tmp_path_factory):
    """Return the config that a list of bases makes; many leaves have the same ones."""
    file = tmp_path_factory.mktemp('bases') / 'bases.py'

    @cache
    def inherit(*bases: str) -> Config:
        file.write_text(f'_base_ = {list(bases)!r}\n')
        return Config.fromfile(file)

    return inherit


def own_and_inherited(path: Path, inherit: Callable[..., Config]) -> tuple[dict, dict]:
    """Return the values that a config sets, and those that it would have without."""
    tree = ast.parse(path.read_text())
    base, = (node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == '_base_')
    bases = ast.literal_eval(base.value)
    bases = [bases] if isinstance(bases, str) else bases
    bases = [name if '::' in name else str((path.parent / name).resolve()) for name in bases]
    inherited = inherit(*bases)
    names = {'_base_': copy.deepcopy(inherited)}
    tree.body.remove(base)
    exec(compile(tree, str(path), 'exec'), names)
    own = {name: value for name, value in names.items() if name not in ('_base_', '__builtins__')}
    return own, inherited.to_dict()


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_nothing_is_repeated(path, inherit):
    assert not list(repeated(*own_and_inherited(path, inherit)))


def test_repeated_values_are_found():
    own = dict(a=1, b=dict(c=2, d=3), e=dict(_delete_=True, f=4), g=5)
    assert list(repeated(own, dict(a=1, b=dict(c=2, d=0), e=dict(f=4)))) == ['a=1', 'b.c=2']
