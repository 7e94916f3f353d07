"""The files that MMEngine leaves of a run. No code in them is executed."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Settings in which runs of the same experiment differ.
_RUN_SPECIFIC = frozenset(
    ('experiment_name', 'launcher', 'log_level', 'randomness', 'resume', 'vis_backends', 'visualizer', 'work_dir'))
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


@dataclass(frozen=True)
class Problem:
    """Something that could not be read and was left out.

    Attributes:
        where (str): File, with the line if there is one.
        text (str): The reason.
    """

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


def read_text(path: Path) -> str:
    """Read a text, with replacement characters for bytes that are not UTF-8."""
    return path.read_text(encoding='utf-8', errors='replace')


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
    try:
        with warnings.catch_warnings():
            # Python's own warnings about the text do not concern the reader of a table.
            warnings.simplefilter('ignore')
            tree = ast.parse(path.read_text(encoding='utf-8'))
        config = {}
        for statement in tree.body:
            if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
                raise ValueError(f'line {statement.lineno} is not an assignment of a plain value')
            config[statement.targets[0].id] = _evaluate(statement.value)
    # Null bytes, nesting that is too deep, and lists as keys raise the last ones.
    except (SyntaxError, ValueError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(f'is not a config as MMEngine dumps it: {error}') from error
    return config


def _evaluate(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(_ToLiterals().visit(node))
    except ValueError as error:
        raise ValueError(f'line {node.lineno} is not a plain value') from error


class _ToLiterals(ast.NodeTransformer):
    """Turns ``dict(a=1)``, ``dict({'a.b': 1}, c=2)``, ``inf`` and ``nan`` into literals."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        is_dict = isinstance(node.func, ast.Name) and node.func.id == 'dict' and all(
            isinstance(argument, ast.Dict) for argument in node.args) and all(keyword.arg for keyword in node.keywords)
        if not is_dict:
            return node
        keys, values = [], []
        for argument in node.args:
            keys += argument.keys  # type: ignore[attr-defined]
            values += argument.values  # type: ignore[attr-defined]
        keys += [ast.Constant(keyword.arg) for keyword in node.keywords]
        values += [keyword.value for keyword in node.keywords]
        return ast.Dict(keys, values)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(float(node.id)) if node.id in ('inf', 'nan') else node


def read_environment(start: Path) -> dict[str, str]:
    """Read versions, device and seed from the head of a log."""
    log = start / f'{start.name}.log'
    if not log.is_file():
        return {}
    with open(log, encoding='utf-8', errors='replace') as file:
        head = file.read(20_000)
    matches = {name: re.search(pattern, head, re.MULTILINE) for name, pattern in _ENVIRONMENT.items()}
    return dict(GPU='none (CPU)') | {name: match.group(1).strip() for name, match in matches.items() if match}


def config_hash(config: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that are the same for all runs of an experiment.

    Seed, folders and launcher are left out; only the file names of checkpoints to start from count.
    """
    text = json.dumps(_comparable(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _comparable(config: Any, key: str = '') -> Any:
    if isinstance(config, Mapping):
        # Keys of several types could not be sorted.
        return {
            str(name): _comparable(value, str(name))
            for name, value in config.items() if key or name not in _RUN_SPECIFIC
        }
    if isinstance(config, (list, tuple)):
        return [_comparable(value, key or 'list') for value in config]
    if key in ('checkpoint', 'load_from') and isinstance(config, str):
        return Path(config).name
    return config
