"""What could be run: the configs of this repository, as their metafiles list them, with the figures of the paper."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pelk_mm.engine.launch import load_config

from .runs import Problem, Run, is_number

# Names of metrics in metafiles -> those of METRICS.
METAFILE_METRICS = {'Top 1 Accuracy': 'top1', 'mIoU': 'miou', 'box AP': 'ap_box', 'mask AP': 'ap_mask'}
# A command with more overrides than this is not for people: the config of the run itself is then the better start.
MAX_OPTIONS = 6
# Differs from run to run, or is set by the machine, or only tells how a run is watched.
_NOT_OPTIONS = re.compile(r'work_dir|launcher|resume|log_level|experiment_name|randomness\.seed|'
                          r'.*_dataloader\.(pin_memory|persistent_workers)|(vis_backends|visualizer)(\..*)?')
# Where things lie, how they are loaded and what is saved changes no result.
_WITHOUT_EFFECT = re.compile(r'((.*\.)?(data_root|num_workers|init_cfg\.checkpoint)|default_hooks\..*)=')


@dataclass(frozen=True)
class Entry:
    """One config of the repository.

    Attributes:
        name (str): Name of the config.
        path (Path): The config, relative to the repository.
        data (str): What it is trained on.
        figures (dict[str, float]): Published metrics in per cent, by keys of ``METRICS``.
        table (int | None): The table of the paper that the figures are from.
        row (str): The name of the method in that table.
    """

    name: str
    path: Path
    data: str = ''
    figures: Mapping[str, float] = field(default_factory=dict)
    table: int | None = None
    row: str = ''

    @property
    def folder(self) -> str:
        """The folder of the config below ``configs``."""
        return str(Path(*self.path.parent.parts[1:]))


def read_catalogue(root: Path) -> tuple[list[Entry], list[Problem]]:
    """Every model of the metafiles under ``configs``.

    Args:
        root (Path): The repository.

    Returns:
        tuple[list[Entry], list[Problem]]: The entries, and the metafiles that could not be read.
    """
    entries, problems = [], []
    for metafile in sorted((root / 'configs').rglob('metafile.yml')):
        try:
            models = (yaml.safe_load(metafile.read_text(encoding='utf-8')) or {}).get('Models') or []
            entries += [_entry(model) for model in models]
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            problems.append(Problem(str(metafile), f'is no metafile: {" ".join(str(error).split())}'))
    return entries, problems


def shown_path(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def command_of(run: Run, entry: Entry | None, root: Path) -> tuple[str, list[str] | None]:
    """The command that makes this run again, from the root of the repository.

    It is made from the config that the run left, so that whatever was overridden is in it, and so is the seed that was
    drawn.

    Args:
        run (Run): A training or a test.
        entry (Entry, optional): The config that it has the name of.
        root (Path): The repository.

    Returns:
        tuple[str, list[str] | None]: The command, and the settings in which the run differs from the present config.
        None: it differs by more than options can say, and the command starts from the config that the run left.
    """
    is_test = run.measured.startswith('test') and run.progress is None
    options: list[str] | None = []
    config = shown_path(run.folder / f'{run.name}.py')
    if entry is not None:
        options = _options_of(run, root / entry.path, is_test) if (root / entry.path).is_file() else None
        if options is not None:
            config = str(entry.path)
    if is_test:
        return shlex.join(['python', 'tools/test.py', config, str(run.config.get('load_from'))]), options
    processes = run.environment.get('processes', '1')
    launcher = run.environment.get('launcher', 'none')
    if launcher == 'slurm':
        words = ['bash', 'tools/slurm_train.sh', 'PARTITION', run.name, config]
    elif launcher == 'none' and processes == '1':
        words = ['python', 'tools/train.py', config]
    else:
        words = ['bash', 'tools/dist_train.sh', config, processes]
    given = [*(options or ()), *([f'randomness.seed={run.seed}'] if run.seed else [])]
    words += ['--cfg-options', *given] if given else []
    return shlex.join(words), None if options is None else [
        option for option in options if not _WITHOUT_EFFECT.match(option)
    ]


def _entry(model: Mapping[str, Any]) -> Entry:
    figures, tables = {}, set()
    metadata = model.get('Metadata') or {}
    for result in model.get('Results') or []:
        table = re.fullmatch(r'the paper, Table (\d+)', result.get('Source', ''))
        tables.add(int(table.group(1)) if table else None)
        figures.update({
            METAFILE_METRICS[name]: value
            for name, value in result['Metrics'].items() if name in METAFILE_METRICS
        })
    for name, value in (('Name', model['Name']), ('Training Data', metadata.get('Training Data', ''))):
        if not isinstance(value, str):
            raise TypeError(f'{name} must be a text, got {value!r}')
    for name, value in figures.items():
        if not is_number(value):
            raise TypeError(f'{name} of {model["Name"]} must be a number, got {value!r}')
    return Entry(model['Name'], Path(model['Config']), metadata.get('Training Data', ''), figures,
                 tables.pop() if len(tables) == 1 else None, metadata.get('Row', ''))


def _options_of(run: Run, path: Path, is_test: bool) -> list[str] | None:
    """The overrides that make the run's config of the present one; None if that takes more than a few."""
    present = load_config(str(path)).to_dict()
    if is_test or run.config.get('resume'):
        # Then it names the checkpoint to test or to go on from, not one to start from.
        present['load_from'] = run.config.get('load_from')
    options = _options(present, run.config)
    return None if options is None or len(options) > MAX_OPTIONS else options


def _options(present: Mapping[str, Any], run: Mapping[str, Any]) -> list[str] | None:
    """How ``--cfg-options`` makes one config of the other; None if it cannot."""
    old, new = dict(_flatten(present)), dict(_flatten(run))
    options = []
    for key in sorted(old.keys() | new.keys()):
        if _NOT_OPTIONS.fullmatch(key) or key in old and key in new and old[key] == new[key]:
            continue
        if key not in new or not _is_plain(new[key]):
            return None
        value = new[key]
        text = '[' + ','.join(map(str, value)) + ']' if isinstance(value, list) else str(value)
        options.append(f'{key}={text}')
    return options


def _flatten(config: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flatten(value, f'{prefix}.{key}' if prefix else str(key))
    else:
        yield prefix, _as_lists(config)


def _as_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_lists(child) for key, child in value.items()}
    return [_as_lists(child)
            for child in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(child, (int, float)) for child in value)
    # Text with these would be taken for a list.
    return value is None or isinstance(value, (int, float)) or isinstance(value, str) and not set(value) & set(',[]()')
