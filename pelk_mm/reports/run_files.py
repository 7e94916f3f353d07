"""The files that MMEngine saves of a run, and their errors. No code in them is executed."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

# Lines in the head of a log.
_ENVIRONMENT = dict(
    Python=r'^    Python: (\S+)',
    PyTorch=r'^    PyTorch: (\S+)',
    MMEngine=r'^    MMEngine: (\S+)',
    GPU=r'^    GPU [\d,]+: (.+)$',
    CUDA=r'^    NVCC: .*?(V[\d.]+)',
    seed=r'^    seed: (\d+)',
    processes=r'^    GPU number: (\d+)',
    launcher=r'^    Distributed launcher: (\w+)')


class Problem(NamedTuple):
    """Something that could not be read and was left out: the file, with the line if there is one, and the reason."""

    where: str
    text: str


class Problems(list[Problem]):
    """The problems met so far."""

    @contextmanager
    def at(self, where: Any) -> Iterator[None]:
        """Turn an error of reading a file into a problem of that place."""
        try:
            yield
        except (OSError, ValueError, RecursionError) as error:
            self.append(Problem(str(where), str(error)))


def read_json(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: If the text is broken or another value.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'is broken or half-written: {error}') from error
    if not isinstance(record, dict):
        raise ValueError(f'must be an object, got {type(record).__name__}')
    return record


def read_run_config(path: Path) -> dict[str, Any]:
    """Read the config of a run.

    Raises:
        ValueError: If it is missing, is not a config as MMEngine dumps it, or has entries of other types.
    """
    if not path.is_file():
        raise ValueError('is missing: the settings of the run are not known')
    config = read_dumped_config(path)
    for key, kind in (('train_cfg', dict), ('model', dict), ('load_from', str)):
        if not isinstance(config.get(key), (kind, type(None))):
            raise ValueError(f'has a {type(config[key]).__name__} as {key}, not a {kind.__name__}')
    if '\0' in (config.get('load_from') or ''):
        raise ValueError('has a null byte in load_from')
    return config


def read_dumped_config(path: Path) -> dict[str, Any]:
    """Read a config as MMEngine dumps it, assignments of plain values and ``dict(...)``, without running it.

    Raises:
        ValueError: If it holds anything else.
    """
    config = {}
    try:
        with warnings.catch_warnings():
            # Python's own warnings about the text do not concern the reader of a table.
            warnings.simplefilter('ignore')
            tree = ast.parse(path.read_text(encoding='utf-8'))
        for statement in tree.body:
            if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
                raise ValueError(f'line {statement.lineno} is not an assignment of a plain value')
            config[statement.targets[0].id] = _evaluate(statement.value)
    # Null bytes, nesting that is too deep, and lists as keys raise the last ones.
    except (SyntaxError, ValueError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(f'is not a config as MMEngine dumps it: {error}') from error
    return config


def _evaluate(node: Any) -> Any:
    """Evaluate a literal, or a call of ``dict`` with literals, of any depth."""
    match node:
        # Names that are not identifiers come as dict({'a.b': 1}, c=2).
        case ast.Call(func=ast.Name(id='dict'), args=[] | [ast.Dict()]) if all(word.arg for word in node.keywords):
            first = _evaluate(node.args[0]) if node.args else {}
            return first | {word.arg: _evaluate(word.value) for word in node.keywords}
        case ast.Dict():
            return {_evaluate(key): _evaluate(value) for key, value in zip(node.keys, node.values)}
        case ast.List():
            return [_evaluate(element) for element in node.elts]
        case ast.Tuple():
            return tuple(_evaluate(element) for element in node.elts)
        case ast.Name(id='inf' | 'nan'):
            return float(node.id)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f'line {getattr(node, "lineno", "?")} is not a plain value') from error


def read_environment(start: Path) -> dict[str, str]:
    """Read versions, device and seed from the head of the log of a start."""
    log = start / f'{start.name}.log'
    if not log.is_file():
        return {}
    with open(log, encoding='utf-8', errors='replace') as file:
        head = file.read(20_000)
    matches = {name: re.search(pattern, head, re.MULTILINE) for name, pattern in _ENVIRONMENT.items()}
    return dict(GPU='none (CPU)') | {name: match.group(1).strip() for name, match in matches.items() if match}
