"""Finished, running and broken trainings, as MMEngine leaves them on disk. Nothing that is read is run or trusted.

A work directory holds a folder for every start of ``tools/train.py`` or ``tools/test.py``, named by its time::

    work_dir/<config>.py
    work_dir/<time>/<time>.log                 environment, seed
    work_dir/<time>/<time>.json                metrics of a test
    work_dir/<time>/vis_data/config.py         the whole config
    work_dir/<time>/vis_data/scalars.json      a line for every logged step, and for every validation
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What runs are compared by: name -> pattern of its key in MMEngine's logs, factor to per cent.
METRICS = {
    'top1': (re.compile(r'(.*/)?accuracy/top1'), 1),
    'miou': (re.compile(r'(.*/)?mIoU'), 1),
    'ap_box': (re.compile(r'(.*/)?bbox_mAP'), 100),
    'ap_mask': (re.compile(r'(.*/)?segm_mAP'), 100),
}
# What differs between runs of the same experiment.
_RUN_SPECIFIC = frozenset(
    ('experiment_name', 'launcher', 'log_level', 'randomness', 'resume', 'vis_backends', 'visualizer', 'work_dir'))
# What stands for JSON that could not be parsed; null is a value.
_BROKEN = object()
_TIME = re.compile(r'\d{8}_\d{6}')


@dataclass(frozen=True)
class Problem:
    """Something that could not be read and was left out.

    Attributes:
        where (str): File, with the line if there is one.
        text (str): What is wrong with it.
    """

    where: str
    text: str


@dataclass
class Run:
    """One training, with its resumptions and tests; or tests of a checkpoint from elsewhere.

    Attributes:
        folder (Path): Its work directory.
        name (str): Name of its config.
        config (dict): All that the config holds.
        metrics (dict[str, float]): In per cent, by keys of ``METRICS``; empty if there is none yet.
        source (Path | None): The file that they are from.
        measured (str): In words, by what they were measured.
        progress (tuple[int, int] | None): Epochs or iterations done and to do; None if that is not known.
        unit (str): ``'epoch'`` or ``'iteration'``.
        environment (dict[str, str]): Versions, device and seed, as the log tells.
        density (float | None): The last density that ``DynamicSparsityHook`` logged.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    source: Path | None = None
    measured: str = ''
    progress: tuple[int, int] | None = None
    unit: str = 'epoch'
    environment: dict[str, str] = field(default_factory=dict)
    density: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether there are metrics of the whole training, as far as that is known."""
        return bool(self.metrics) and (self.progress is None or self.progress[0] >= self.progress[1])

    @property
    def hash(self) -> str:
        """Digest of the config, the same for all runs of an experiment.

        Seed, folders and launcher are left out; of the checkpoints that it starts from only the names of the files
        count.
        """
        text = json.dumps(_comparable(self.config), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def seed(self) -> str:
        """The seed, '' if it is not known."""
        return self.environment.get('seed', '')


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """Every run in and under some folders.

    Args:
        folders (Iterable[Path]): Work directories, or folders that contain such.

    Returns:
        tuple[list[Run], list[Problem]]: The runs, in the order of their folders; and what could not be read.

    Raises:
        NotADirectoryError: If one of the folders is none.
    """
    problems: list[Problem] = []
    starts: dict[Path, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(f'work_dirs must be folders, got {folder}')
        for start in sorted(path for path in folder.rglob('*') if _TIME.fullmatch(path.name) and path.is_dir()):
            if (start / 'vis_data').is_dir() or (start / f'{start.name}.log').is_file():
                found = starts.setdefault(start.parent.resolve(), [])
                if start.resolve() not in found:
                    found.append(start.resolve())
    runs: dict[Path, Run] = {}
    tests: list[Path] = []
    for folder, times in starts.items():
        trainings = [start for start in times if not (start / f'{start.name}.json').is_file()]
        tests += [start for start in times if start not in trainings]
        if trainings:
            run = _read_training(folder, trainings, problems)
            if run is not None:
                runs[folder] = run
    for start in sorted(tests, key=lambda start: start.name):
        _add_test(start, runs, problems)
    return [run for _, run in sorted(runs.items())], problems


def read_json_lines(path: Path, problems: list[Problem]) -> Iterator[dict[str, Any]]:
    """The objects of a file with one on each line; lines that are none are added to ``problems``."""
    try:
        lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError as error:
        problems.append(Problem(str(path), f'cannot be read: {error.strerror}'))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parse_json(line, f'{path}, line {number}', problems)
        if isinstance(record, dict):
            yield record
        elif record is not _BROKEN:
            problems.append(Problem(f'{path}, line {number}', f'must be an object, got {type(record).__name__}'))


def read_dumped_config(path: Path) -> dict[str, Any]:
    """A config as MMEngine dumps it: assignments of plain values and ``dict(...)``. Nothing of it is run.

    Raises:
        ValueError: If it holds anything else.
    """
    try:
        # What Python itself would only warn of is no matter here.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            tree = ast.parse(path.read_text(encoding='utf-8'))
        config = {}
        for statement in tree.body:
            if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
                raise ValueError(f'line {statement.lineno} is no assignment of a plain value')
            config[statement.targets[0].id] = _value(statement.value)
    # The last of null bytes, nesting that is too deep, and lists as keys.
    except (SyntaxError, ValueError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(f'is no config as MMEngine dumps it: {error}') from error
    return config


def read_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """What a record of a log holds of ``METRICS``, in per cent; values that are not finite numbers are left out."""
    found = {}
    for name, (pattern, factor) in METRICS.items():
        for key, value in record.items():
            if pattern.fullmatch(key) and is_number(value) and is_number(value * factor):
                found[name] = value * factor
    return found


def _read_training(folder: Path, starts: list[Path], problems: list[Problem]) -> Run | None:
    config_file = next((file for start in reversed(starts) if (file := start / 'vis_data' / 'config.py').is_file()),
                       None)
    config = _config(config_file, starts[-1], problems)
    if config is None:
        return None
    loop = config.get('train_cfg') or {}
    unit = 'iteration' if 'max_iters' in loop else 'epoch'
    run = Run(folder, _config_name(folder), config, unit=unit)
    done = 0
    for start in starts:
        run.environment.update(_environment(start))
        scalars = start / 'vis_data' / 'scalars.json'
        if not scalars.is_file():
            problems.append(
                Problem(str(start), 'has no vis_data/scalars.json: the run stopped before it logged anything'))
            continue
        for record in read_json_lines(scalars, problems):
            if is_number(record.get('density')):
                run.density = record['density']
            metrics = read_metrics(record)
            # True and False are integers, too.
            if metrics and type(record.get('step')) is int:
                run.metrics, run.source, done = metrics, scalars, record['step']
                run.measured = f'validation at {unit} {done}'
    end = loop.get('max_iters', loop.get('max_epochs'))
    run.progress = (done, end) if type(end) is int else None
    return run


def _add_test(start: Path, runs: dict[Path, Run], problems: list[Problem]) -> None:
    """Add a test to the run whose folder it is in or whose checkpoint it is of, else make it a run of its own."""
    file = start / f'{start.name}.json'
    try:
        text = file.read_text(encoding='utf-8', errors='replace')
    except OSError as error:
        problems.append(Problem(str(file), f'cannot be read: {error.strerror}'))
        return
    record = _parse_json(text, str(file), problems)
    if record is _BROKEN:
        return
    config = _config(start / 'vis_data' / 'config.py', start, problems)
    if config is None:
        return
    metrics = read_metrics(record) if isinstance(record, dict) else {}
    if not metrics:
        problems.append(Problem(str(file), f'has none of the metrics {", ".join(METRICS)}'))
        return
    if 'module' in (config.get('model') or {}):
        problems.append(Problem(str(file), 'is of a test with test-time augmentation, not comparable'))
        return
    checkpoint = config.get('load_from') or ''
    places = [*Path(checkpoint).resolve().parents, *start.parents] if checkpoint else [*start.parents]
    run = next((runs[place] for place in places if place in runs), None)
    if run is None:
        folder = start.parent
        run = runs[folder] = Run(folder, _config_name(folder), config)
    elif _TIME.fullmatch(
            run.source.parent.parent.name if run.source else '') and run.source.parent.parent.name > start.name:
        # The training went on after this test.
        return
    run.metrics, run.source = metrics, file
    run.measured = f'test of {Path(checkpoint).name}' if checkpoint else 'test'
    run.environment = {**_environment(start), **run.environment}
    step = re.search(r'(epoch|iter)_(\d{1,18})\.pth$', checkpoint)
    if step and run.progress:
        run.progress = (int(step.group(2)), run.progress[1])


def _parse_json(text: str, where: str, problems: list[Problem]) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(Problem(where, f'is broken or half-written: {error}'))
        return _BROKEN


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are none, nor is an integer beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _config(path: Path | None, start: Path, problems: list[Problem]) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        problems.append(Problem(str(start), 'has no vis_data/config.py: what was run is not known'))
        return None
    try:
        config = read_dumped_config(path)
        for key, kind in (('train_cfg', dict), ('model', dict), ('load_from', str)):
            if not isinstance(config.get(key), (kind, type(None))):
                raise ValueError(f'has a {type(config[key]).__name__} as {key}, not a {kind.__name__}')
        if '\0' in (config.get('load_from') or ''):
            raise ValueError('has a null byte in load_from')
    except (OSError, ValueError) as error:
        problems.append(Problem(str(path), str(error)))
        return None
    return config


def _config_name(folder: Path) -> str:
    """MMEngine leaves a copy of the config in the work directory, under its name; the latest is of the last start."""
    copies = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    return copies[-1].stem if copies else folder.name


def _environment(start: Path) -> dict[str, str]:
    """What the head of the log tells."""
    log = start / f'{start.name}.log'
    if not log.is_file():
        return {}
    with open(log, encoding='utf-8', errors='replace') as file:
        head = file.read(20_000)
    found = {}
    for name, pattern in dict(
            Python=r'^    Python: (\S+)',
            PyTorch=r'^    PyTorch: (\S+)',
            MMEngine=r'^    MMEngine: (\S+)',
            GPU=r'^    GPU [\d,]+: (.+)$',
            CUDA=r'^    NVCC: .*?(V[\d.]+)',
            seed=r'^    seed: (\d+)',
            processes=r'^    GPU number: (\d+)',
            launcher=r'^    Distributed launcher: (\w+)').items():
        match = re.search(pattern, head, re.MULTILINE)
        if match:
            found[name] = match.group(1).strip()
    found.setdefault('GPU', 'none (CPU)')
    return found


def _value(node: ast.expr) -> Any:
    """A literal, or a call of ``dict`` with literals, of any depth."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        # Names that are no identifiers come as dict({'a.b': 1}, c=2).
        pairs = [_value(argument) for argument in node.args if isinstance(argument, ast.Dict)]
        pairs.append({keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None})
        return {name: value for part in pairs for name, value in part.items()}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _value(value) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value(element) for element in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f'line {node.lineno} is no plain value') from error


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
