"""Finished, running and broken trainings, as MMEngine leaves them on disk.

A work directory holds a folder for every start of ``tools/train.py`` or ``tools/test.py``, named by its time::

    work_dir/<config>.py
    work_dir/<time>/<time>.log                 environment, seed
    work_dir/<time>/<time>.json                metrics of a test
    work_dir/<time>/vis_data/config.py         the complete config
    work_dir/<time>/vis_data/scalars.json      a line for every logged step, and for every validation
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .metrics import METRICS, is_number, read_metrics
from .run_files import Problem, Problems, read_environment, read_json, read_run_config

_TIME = re.compile(r'\d{8}_\d{6}')
# Settings in which runs of the same experiment differ.
_RUN_SPECIFIC = frozenset(
    ('experiment_name', 'launcher', 'log_level', 'randomness', 'resume', 'vis_backends', 'visualizer', 'work_dir'))


@dataclass
class Run:
    """One training, with its resumptions and tests; or tests of a checkpoint from elsewhere.

    Attributes:
        folder (Path): Its work directory.
        name (str): Name of its config.
        config (dict): The complete config.
        metrics (dict[str, float]): In per cent, by keys of ``METRICS``; empty before the first validation.
        source (Path | None): The file that they are from.
        measured (str): How they were measured, in words.
        progress (tuple[int, int] | None): Epochs or iterations done and to do; None if that is not known.
        unit (str): ``'epoch'`` or ``'iteration'``.
        environment (dict[str, str]): Versions, device and seed, from the log.
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
        """Whether there are metrics of the complete training, as far as that is known."""
        return bool(self.metrics) and (self.progress is None or self.progress[0] >= self.progress[1])

    @property
    def hash(self) -> str:
        """Digest of the config, the same for all runs of an experiment.

        Seed, folders and launcher are left out; only the file names of checkpoints to start from count.
        """
        text = json.dumps(_comparable(self.config), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def seed(self) -> str:
        """The seed, '' if it is not known."""
        return self.environment.get('seed', '')


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], Problems]:
    """Find every run in and under some folders.

    Args:
        folders (Iterable[Path]): Work directories, or folders that contain such.

    Returns:
        tuple[list[Run], Problems]: The runs, in the order of their folders; and what could not be read.

    Raises:
        NotADirectoryError: If one of the paths is not a folder.
    """
    problems = Problems()
    runs: dict[Path, Run] = {}
    trainings: dict[Path, list[Path]] = {}
    tests = []
    for start in dict.fromkeys(_find_starts(folders)):
        if (start / f'{start.name}.json').is_file():
            tests.append(start)
        else:
            trainings.setdefault(start.parent, []).append(start)
    for folder, starts in trainings.items():
        config = next(filter(Path.is_file, map(_config_of, reversed(starts))), _config_of(starts[-1]))
        with problems.at(config):
            runs[folder] = Run(folder, _config_name(folder), read_run_config(config))
        if folder in runs:
            _read_training(runs[folder], starts, problems)
    for start in sorted(tests, key=lambda start: start.name):
        _add_test(start, runs, problems)
    return [run for _, run in sorted(runs.items())], problems


def _find_starts(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(f'work_dirs must be folders, got {folder}')
        for path in sorted(folder.rglob('*')):
            if _TIME.fullmatch(path.name) and ((path / 'vis_data').is_dir() or (path / f'{path.name}.log').is_file()):
                yield path.resolve()


def _read_training(run: Run, starts: list[Path], problems: Problems) -> None:
    loop = run.config.get('train_cfg') or {}
    done = 0
    if 'max_iters' in loop:
        run.unit = 'iteration'
    for start in starts:
        run.environment.update(read_environment(start))
        scalars = start / 'vis_data' / 'scalars.json'
        if not scalars.is_file():
            text = 'has no vis_data/scalars.json: the run stopped before it logged anything'
            problems.append(Problem(str(start), text))
            continue
        for record in _read_lines(scalars, problems):
            if is_number(record.get('density')):
                run.density = record['density']
            metrics = read_metrics(record)
            # Booleans are integers, too.
            if metrics and type(record.get('step')) is int:
                run.metrics, run.source, done = metrics, scalars, record['step']
                run.measured = f'validation at {run.unit} {done}'
    end = loop.get('max_iters', loop.get('max_epochs'))
    run.progress = (done, end) if type(end) is int else None


def _read_lines(path: Path, problems: Problems) -> Iterator[dict[str, Any]]:
    lines: list[str] = []
    with problems.at(path):
        lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            with problems.at(f'{path}, line {number}'):
                yield read_json(line)


def _add_test(start: Path, runs: dict[Path, Run], problems: Problems) -> None:
    """Add a test to the run that its folder or its checkpoint belongs to, else make it a run of its own."""
    file = start / f'{start.name}.json'
    with problems.at(file):
        metrics = read_metrics(read_json(file.read_text(encoding='utf-8', errors='replace')))
        if not metrics:
            raise ValueError(f'has no metric of {", ".join(METRICS)}')
        with problems.at(_config_of(start)):
            config = read_run_config(_config_of(start))
            if 'module' in (config.get('model') or {}):
                raise ValueError('is of a test with test-time augmentation, not comparable')
            _add_metrics(start, config, metrics, runs)


def _add_metrics(start: Path, config: dict[str, Any], metrics: dict[str, float], runs: dict[Path, Run]) -> None:
    checkpoint = config.get('load_from') or ''
    places = [*(Path(checkpoint).resolve().parents if checkpoint else ()), *start.parents]
    run = next((runs[place] for place in places if place in runs), None)
    if run is None:
        run = runs[start.parent] = Run(start.parent, _config_name(start.parent), config)
    elif run.source and run.source.parents[run.source.name == 'scalars.json'].name > start.name:
        # The training went on after this test.
        return
    run.metrics, run.source = metrics, start / f'{start.name}.json'
    run.measured = f'test of {Path(checkpoint).name}' if checkpoint else 'test'
    run.environment = {**read_environment(start), **run.environment}
    step = re.search(r'(epoch|iter)_(\d{1,18})\.pth$', checkpoint)
    if step and run.progress:
        run.progress = (int(step.group(2)), run.progress[1])


def _config_of(start: Path) -> Path:
    return start / 'vis_data' / 'config.py'


def _config_name(folder: Path) -> str:
    """Return the name of the config that MMEngine copied last to the work directory, at the last start."""
    copies = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    return copies[-1].stem if copies else folder.name


def _comparable(config: Any, key: str = '') -> Any:
    if isinstance(config, Mapping):
        # Keys of several types could not be sorted.
        return {
            str(name): _comparable(value, str(name))
            for name, value in config.items() if key or name not in _RUN_SPECIFIC
        }
    if isinstance(config, (list, tuple)):
        return [_comparable(value, key or 'list') for value in config]
    return Path(config).name if key in ('checkpoint', 'load_from') and isinstance(config, str) else config
