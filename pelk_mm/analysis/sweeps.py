"""Sweeps: the trainings behind a table of configs, where each of them stands, and the commands that do the rest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config, DictAction

from .. import compat
from ..engine.steps import digest
from .digits_form import to_digits


@dataclass(frozen=True)
class Metric:
    """What a toolbox's configs are compared by.

    Attributes:
        name (str): Heads its columns.
        key (str): Its name in the results of ``tools/test.py``.
        metafile_key (str): Its name in metafiles.
    """

    name: str
    key: str
    metafile_key: str


METRICS = dict(
    mmpretrain=Metric('top-1', 'accuracy/top1', 'Top 1 Accuracy'), mmseg=Metric('mIoU', 'mIoU', 'mIoU'))


@dataclass(frozen=True)
class Launcher:
    """How commands start their processes.

    Attributes:
        gpus (int, optional): Number of processes on this machine, by torchrun. None: one process, without it.
        partition (str, optional): Slurm's partition; resources come from the environment, see ``tools/slurm_train.sh``.
        train_args (Sequence[str]): Further arguments of ``tools/train.py``, for instance ``--amp``.
    """

    gpus: int | None = None
    partition: str | None = None
    train_args: Sequence[str] = ()

    def command(self, tool: str, job: str, files: Sequence[str], *args: str) -> list[str]:
        """The words of a command.

        Args:
            tool (str): ``'train'`` or ``'test'``.
            job (str): Name of the Slurm job.
            files (Sequence[str]): The config, and the checkpoint to test.
            *args (str): What follows.
        """
        if self.partition is not None:
            return ['bash', f'tools/slurm_{tool}.sh', self.partition, job, *files, *args]
        if self.gpus is not None:
            return ['bash', f'tools/dist_{tool}.sh', *files, str(self.gpus), *args]
        return ['python', f'tools/{tool}.py', *files, *args]


@dataclass(frozen=True)
class Trial:
    """One training of a sweep, and its test.

    Attributes:
        name (str): Name of its config.
        labels (dict[str, str]): What its row of the table says of it, by column.
        metric (Metric): What it is compared by.
        paper (float | None): The paper's figure.
        source (str): Where the figure is from.
        config (Path): The config to run, relative to the repository.
        options (tuple[str, ...]): What to override in it, ``KEY=VALUE``.
        checkpoint (Path): The last one of the training, in the folder of the trial.
        start (Trial | None): The classifier whose backbone it starts from.
    """

    name: str
    labels: dict[str, str]
    metric: Metric
    paper: float | None
    source: str
    config: Path
    options: tuple[str, ...]
    checkpoint: Path
    start: Trial | None

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        return self.checkpoint.parent

    @property
    def is_trained(self) -> bool:
        """Whether training has come to its end."""
        last = self.folder / 'last_checkpoint'
        return (last.exists() and self.checkpoint.exists()
                and Path(last.read_text(encoding='utf-8').strip()).name == self.checkpoint.name)

    @property
    def result(self) -> float | None:
        """Its metric in the latest test that was finished, in per cent."""
        files = sorted(self.folder.glob('test/*/*.json'))
        return json.loads(files[-1].read_text(encoding='utf-8'))[self.metric.key] if files else None

    def train_command(self, launcher: Launcher) -> list[str]:
        """Train, or go on with a training that was stopped."""
        options = list(self.options)
        if self.start is not None:
            options.append(f'model.backbone.init_cfg.checkpoint={self.start.checkpoint}')
        return launcher.command('train', self.name, [str(self.config)], '--work-dir', str(self.folder), '--resume',
                                *launcher.train_args, *_overrides(options))

    def test_command(self, launcher: Launcher) -> list[str]:
        """Test the last checkpoint."""
        return launcher.command('test', self.name, [str(self.config), str(self.checkpoint)], '--work-dir',
                                str(self.folder / 'test'), *_overrides(self.options))


def plan_sweep(table: Path,
               work_dir: Path,
               options: Mapping[str, Sequence[str]] | None = None,
               digits: bool = False,
               environment: str = '') -> list[Trial]:
    """The trainings of a table, in an order in which they can be run.

    The ``metafile.yml`` of the table lists its configs. ``Metadata.Ablation`` of an entry says what its row of the
    table is; a segmentor starts from the classifier of the same row.

    A trial's folder is named after the config and a digest of all that it resolves to, so that another table with the
    same configuration finds it trained, and a changed one is trained anew.

    Args:
        table (Path): Folder of the configs, relative to the repository, which must be the current directory.
        work_dir (Path): Folder of all sweeps. With ``digits`` the configs are written into it.
        options (Mapping[str, Sequence[str]], optional): What to override in the configs of each toolbox
            (``mmpretrain``, ``mmseg``), as words ``KEY=VALUE``.
        digits (bool): Train on the built-in data instead, see :func:`to_digits`.
        environment (str): What a trial's result depends on beside its config.

    Returns:
        list[Trial]: In the order of the metafile.

    Raises:
        FileNotFoundError: If the folder has no metafile.
        ValueError: If an entry has no row, or a segmentor no classifier before it.
    """
    metafile = table / 'metafile.yml'
    if not metafile.is_file():
        raise FileNotFoundError(f'{table} is no table of configs: it has no metafile.yml')
    compat.setup()
    trials: list[Trial] = []
    digests: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for entry in yaml.safe_load(metafile.read_text(encoding='utf-8'))['Models']:
        name, config, labels = entry['Name'], Path(entry['Config']), _labels(entry, metafile)
        cfg = Config.fromfile(config)
        scope = cfg.get('default_scope')
        if scope not in METRICS:
            raise ValueError(f'{config} must be of {" or ".join(METRICS)}, got {scope}')
        start = None
        if scope != 'mmpretrain':
            start = next((trial for trial in trials if trial.labels == labels), None)
            if start is None:
                raise ValueError(f'{metafile}: no classifier with the row {labels} comes before {name}')
        words = tuple((options or {}).get(scope, ()))
        if digits:
            cfg = to_digits(cfg)
            text = cfg.pretty_text
        cfg.merge_from_dict(_parse_options(words))

        key = digest(cfg.to_dict(), environment, start and digests[start.name])
        if key not in folders:
            existing = sorted((work_dir / 'runs').glob(f'*_{key}'))
            folders[key] = existing[0] if existing else work_dir / 'runs' / f'{name}_{key}'
        digests[name] = key
        if digits:
            config = work_dir / 'configs' / f'{folders[key].name}.py'
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(text, encoding='utf-8')
        paper, source = _paper_figure(entry, METRICS[scope])
        trials.append(
            Trial(name, labels, METRICS[scope], paper, source, config, words, folders[key] / _last(cfg), start))
    return trials


def _labels(entry: dict, metafile: Path) -> dict[str, str]:
    labels = entry.get('Metadata', {}).get('Ablation')
    if not labels:
        raise ValueError(f'{metafile}: {entry["Name"]} must have Metadata.Ablation, the row of the table that it is')
    return {column: str(label) for column, label in labels.items()}


def _overrides(options: Sequence[str]) -> list[str]:
    return ['--cfg-options', *options] if options else []


def _parse_options(words: Sequence[str]) -> dict[str, Any]:
    """What ``--cfg-options`` of the other tools makes of these words."""
    for word in words:
        if '=' not in word:
            raise ValueError(f'options must be KEY=VALUE, got {word!r}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--options', *words] if words else []).options


def _last(cfg: Config) -> str:
    """What MMEngine calls the last checkpoint of a training."""
    if 'max_iters' in cfg.train_cfg:
        return f'iter_{cfg.train_cfg.max_iters}.pth'
    return f'epoch_{cfg.train_cfg.max_epochs}.pth'


def _paper_figure(entry: dict, metric: Metric) -> tuple[float | None, str]:
    for result in entry.get('Results') or ():
        if metric.metafile_key in result['Metrics']:
            return result['Metrics'][metric.metafile_key], result.get('Source', '')
    return None, ''
