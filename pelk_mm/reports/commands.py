"""The commands that train and test, and those that repeat runs."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from pelk_mm.engine.launch import load_config
from pelk_mm.engine.runners import OWN_HOOKS, add_own_hooks

from .catalogue import Entry
from .runs import Run

# A command with more overrides than this is hard to read: the config that the run left is the better start.
MAX_OPTIONS = 6
# Differs from run to run, is set by the machine, or concerns only how a run is watched.
_NOT_OPTIONS = re.compile(r'work_dir|launcher|resume|log_level|experiment_name|randomness\.seed|'
                          r'.*_dataloader\.(pin_memory|persistent_workers)|(vis_backends|visualizer)(\..*)?')
# Places of files, loading and saving change no result.
_WITHOUT_EFFECT = re.compile(r'((.*\.)?(data_root|num_workers|init_cfg\.checkpoint)|default_hooks\..*)=')


@dataclass(frozen=True)
class Launcher:
    """Launcher of the commands.

    Attributes:
        gpus (int, optional): Number of processes on this machine, by torchrun. None: one process, without it.
        partition (str, optional): Slurm's partition; resources come from the environment, see ``tools/slurm_train.sh``.
        train_args (Sequence[str]): Further arguments of ``tools/train.py``, for instance ``--amp``.
    """

    gpus: int | None = None
    partition: str | None = None
    train_args: Sequence[str] = ()

    def command(self, tool: str, job: str, files: Sequence[str], *args: str) -> list[str]:
        """Return the words of a command.

        Args:
            tool (str): ``'train'`` or ``'test'``.
            job (str): Name of the Slurm job.
            files (Sequence[str]): The config, and the checkpoint to test.
            *args (str): Further arguments.
        """
        if self.partition is not None:
            return ['bash', f'tools/slurm_{tool}.sh', self.partition, job, *files, *args]
        if self.gpus is not None:
            return ['bash', f'tools/dist_{tool}.sh', *files, str(self.gpus), *args]
        return ['python', f'tools/{tool}.py', *files, *args]


def overrides(options: Sequence[str]) -> list[str]:
    """Return the arguments of a tool that override values of a config."""
    return ['--cfg-options', *options] if options else []


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Parse words as ``--cfg-options`` of the other tools does."""
    for word in words:
        if '=' not in word:
            raise ValueError(f'options must be KEY=VALUE, got {word!r}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--options', *words] if words else []).options


def shown_path(path: Path) -> str:
    """Return a path as a user would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def command_of(run: Run, entry: Entry | None, root: Path) -> tuple[str, list[str] | None]:
    """Return the command that repeats a run, from the root of the repository.

    It uses the config that the run saved, with all overrides and the seed that was drawn.

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
    if entry is not None:
        options = _changes(run, root / entry.path, is_test) if (root / entry.path).is_file() else None
    config = shown_path(run.folder / f'{run.name}.py') if entry is None or options is None else str(entry.path)
    if is_test:
        return shlex.join(['python', 'tools/test.py', config, str(run.config.get('load_from'))]), options
    seed = [f'randomness.seed={run.seed}'] if run.seed else []
    kind, processes = run.environment.get('launcher', 'none'), int(run.environment.get('processes', 1))
    launcher = Launcher(gpus=None if (kind, processes) == ('none', 1) else processes,
                        partition='PARTITION' if kind == 'slurm' else None)
    words = launcher.command('train', run.name, [config], *overrides([*(options or ()), *seed]))
    return shlex.join(words), options and [option for option in options if not _WITHOUT_EFFECT.match(option)]


def _changes(run: Run, path: Path, is_test: bool) -> list[str] | None:
    """Return the words of ``--cfg-options`` that make the run's config of the present one, None if they cannot."""
    cfg = load_config(str(path))
    if any(name in (run.config.get('default_hooks') or {}) for name in OWN_HOOKS):
        add_own_hooks(cfg)
    present = cfg.to_dict()
    if is_test or run.config.get('resume'):
        # Then it names the checkpoint to test or to go on from, not one to start from.
        present['load_from'] = run.config.get('load_from')
    try:
        # Tuples become lists, as options write them.
        old, new = (dict(_flatten(json.loads(json.dumps(config, default=str)))) for config in (present, run.config))
        changed = [key for key in sorted(old.keys() | new.keys()) if not _NOT_OPTIONS.fullmatch(key)
                   and (key not in old or key not in new or old[key] != new[key])]
        words = [f'{key}={new[key]}'.replace(', ', ',') for key in changed]
        if len(changed) <= MAX_OPTIONS and parse_options(words) == {key: new[key] for key in changed}:
            return words
    # A setting was removed; its keys are not texts; its brackets do not match.
    except (KeyError, TypeError, AssertionError):
        pass
    return None


def _flatten(config: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flatten(value, f'{prefix}.{key}' if prefix else key)
    else:
        yield prefix, config
