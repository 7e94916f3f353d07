"""Sweeps: the trainings of a table of configs, their state, the commands that remain to run, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .. import compat
from ..analysis.text_tables import to_markdown_table
from ..engine.steps import digest
from .catalogue import Entry, read_metafile
from .commands import Launcher, overrides, parse_options
from .digits_configs import scale_config_to_digits
from .metrics import METRICS
from .plots import plot_panels
from .run_files import read_json
from .tables import Row, Table, Value, to_csv_text

# Toolbox -> the metric that its configs are compared by.
SWEPT = dict(mmpretrain='top1', mmseg='miou')


@dataclass(frozen=True)
class Trial:
    """One training of a sweep, and its test.

    Attributes:
        entry (Entry): The entry of the metafile.
        metric (str): The metric that it is compared by, of ``METRICS``.
        config (Path): The config to run, relative to the repository.
        options (tuple[str, ...]): Overrides of it, ``KEY=VALUE``.
        checkpoint (Path): The last one of the training, in the folder of the trial.
        start (Trial | None): The classifier whose backbone it starts from.
    """

    entry: Entry
    metric: str
    config: Path
    options: tuple[str, ...]
    checkpoint: Path
    start: Trial | None

    @property
    def name(self) -> str:
        """Name of the config."""
        return self.entry.name

    @property
    def folder(self) -> Path:
        """The work directory."""
        return self.checkpoint.parent

    @property
    def is_trained(self) -> bool:
        """Whether training is finished."""
        last = self.folder / 'last_checkpoint'
        return (last.exists() and self.checkpoint.exists()
                and Path(last.read_text(encoding='utf-8').strip()).name == self.checkpoint.name)

    @property
    def result(self) -> float | None:
        """Its metric in the latest test that was finished, in per cent."""
        metric = METRICS[self.metric]
        for file in sorted(self.folder.glob('test/*/*.json'), reverse=True):
            # A test that was killed may leave half a file.
            with suppress(KeyError, ValueError):
                return read_json(file.read_text(encoding='utf-8'))[metric.log_key] * metric.factor
        return None

    def train_command(self, launcher: Launcher) -> list[str]:
        """Return the command that trains, or continues a training that was stopped."""
        start = [f'model.backbone.init_cfg.checkpoint={self.start.checkpoint}'] if self.start is not None else []
        return launcher.command('train', self.name, [str(self.config)], '--work-dir', str(self.folder), '--resume',
                                *launcher.train_args, *overrides([*self.options, *start]))

    def test_command(self, launcher: Launcher) -> list[str]:
        """Return the command that tests the last checkpoint."""
        return launcher.command('test', self.name, [str(self.config), str(self.checkpoint)], '--work-dir',
                                str(self.folder / 'test'), *overrides(self.options))


def plan_sweep(table: Path,
               work_dir: Path,
               options: Mapping[str, Sequence[str]] | None = None,
               digits: bool = False,
               environment: str = '') -> list[Trial]:
    """Return the trainings of a table, in an order in which they can be run.

    The ``metafile.yml`` of the table lists its configs. ``Metadata.Ablation`` of an entry is its row of the table; a
    segmentor starts from the classifier of the same row.

    A trial's folder is named after the config and a digest of everything that it resolves to, so that another table
    with the same configuration finds it trained, and a changed one is trained anew.

    Args:
        table (Path): Folder of the configs, relative to the repository, which must be the current directory.
        work_dir (Path): Folder of all sweeps. With ``digits`` the configs are written into it.
        options (Mapping[str, Sequence[str]], optional): Overrides of the configs of each toolbox (``mmpretrain``,
            ``mmseg``), as words ``KEY=VALUE``.
        digits (bool): Train on the built-in data instead, see :func:`scale_config_to_digits`.
        environment (str): Digest of everything else that the result of a trial depends on.

    Returns:
        list[Trial]: In the order of the metafile.

    Raises:
        FileNotFoundError: If the folder has no metafile.
        ValueError: If there are no entries, an entry has no row, or a segmentor no classifier before it.
    """
    metafile = table / 'metafile.yml'
    entries = _read_entries(metafile)
    compat.setup()
    trials: list[Trial] = []
    digests: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for entry in entries:
        config, cfg = entry.path, Config.fromfile(entry.path)
        scope = cfg.get('default_scope')
        start = _start_of(entry, scope, trials, metafile)
        words = tuple((options or {}).get(scope, ()))
        if digits:
            cfg = scale_config_to_digits(cfg)
            text = cfg.pretty_text
        cfg.merge_from_dict(parse_options(words))

        key = digest(cfg.to_dict(), environment, start and digests[start.name])
        if key not in folders:
            existing = sorted((work_dir / 'runs').glob(f'*_{key}'))
            folders[key] = existing[0] if existing else work_dir / 'runs' / f'{entry.name}_{key}'
        digests[entry.name] = key
        if digits:
            config = work_dir / 'configs' / f'{folders[key].name}.py'
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(text, encoding='utf-8')
        # As MMEngine names the last one.
        unit, end = next((unit, cfg.train_cfg[f'max_{unit}s']) for unit in ('iter', 'epoch')
                         if f'max_{unit}s' in cfg.train_cfg)
        trials.append(Trial(entry, SWEPT[scope], config, words, folders[key] / f'{unit}_{end}.pth', start))
    return trials


def _read_entries(metafile: Path) -> list[Entry]:
    if not metafile.is_file():
        raise FileNotFoundError(f'{metafile.parent} is not a table of configs: it has no metafile.yml')
    try:
        entries = read_metafile(metafile)
    except ValueError as error:
        raise ValueError(f'{metafile} {error}') from error
    if not entries:
        raise ValueError(f'{metafile} must list models, got none')
    return entries


def _start_of(entry: Entry, scope: str | None, trials: Sequence[Trial], metafile: Path) -> Trial | None:
    if not entry.labels:
        raise ValueError(f'{metafile}: {entry.name} must have Metadata.Ablation, its row of the table')
    if scope not in SWEPT:
        raise ValueError(f'{entry.path} must be of {" or ".join(SWEPT)}, got {scope}')
    if scope == 'mmpretrain':
        return None
    start = next((trial for trial in trials if trial.entry.labels == entry.labels), None)
    if start is None:
        raise ValueError(f'{metafile}: no classifier with the row {entry.labels} comes before {entry.name}')
    return start


def sweep_table(title: str, trials: Sequence[Trial]) -> Table:
    """Return the table of a sweep. Trials with the same labels, a classifier and its segmentor, are one row."""
    rows: dict[frozenset, Row] = {}
    for trial in trials:
        labels = dict(trial.entry.labels)
        name = ', '.join(f'{column} {label}' for column, label in labels.items())
        row = rows.setdefault(frozenset(labels.items()), Row(name, {}, labels=labels))
        ours = () if (result := trial.result) is None else (result, )
        row.values[trial.metric] = Value(trial.entry.figures.get(trial.metric), ours)
    return Table('sweep', title, '', list(dict.fromkeys(trial.metric for trial in trials)), list(rows.values()))


def sweep_markdown(table: Table, ours: str = 'ours') -> str:
    """Return the table of a sweep to read, plain or rendered, with a heading for our columns."""
    header, *lines = _lines(table, ours, lambda text, number: text or '-')
    return to_markdown_table(header, lines, header[:-2 * len(table.quantities)])


def save_sweep(table: Table, trials: Sequence[Trial], folder: Path, ours: str = 'ours') -> list[Path]:
    """Write ``table.md``, ``.csv``, ``.json`` and ``.png``, over those of the same sweep before it was finished.

    Args:
        table (Table): From :func:`sweep_table`.
        trials (Sequence[Trial]): The trials of the table.
        folder (Path): Is made.
        ours (str): Heading of our columns.

    Returns:
        list[Path]: The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f'table{ending}' for ending in ('.md', '.csv', '.json', '.png')]
    files[0].write_text(f'# {table.title}\n\n{sweep_markdown(table, ours)}\n', encoding='utf-8')
    lines = _lines(table, ours, lambda text, number: '' if number is None else text)
    files[1].write_text(to_csv_text(lines), encoding='utf-8', newline='\r\n')
    rows = [dict(row.labels, **{METRICS[trial.metric].name: _details(trial) for trial in trials
                                if trial.entry.labels == row.labels}) for row in table.rows]
    files[2].write_text(json.dumps(dict(title=table.title, ours=ours, rows=rows), indent=1) + '\n', encoding='utf-8')
    plot_panels(table, ours).savefig(files[3], dpi=100)
    return files


def _lines(table: Table, ours: str, show: Callable[[str, float | None], str]) -> Iterator[list[str]]:
    labels = list(dict.fromkeys(column for row in table.rows for column in row.labels))
    yield [*labels, *(f'{METRICS[name].name}, {column}' for name in table.quantities for column in ('paper', ours))]
    for row in table.rows:
        shown = [row.cells(name)[column] for name in table.quantities for column in ('paper', 'ours')]
        yield [*(row.labels.get(column, '') for column in labels), *(show(*cell) for cell in shown)]


def _details(trial: Trial) -> dict[str, Any]:
    return dict(
        config=str(trial.config),
        checkpoint=str(trial.checkpoint),
        paper=trial.entry.figures.get(trial.metric),
        source=trial.entry.sources.get(trial.metric, ''),
        ours=trial.result)
