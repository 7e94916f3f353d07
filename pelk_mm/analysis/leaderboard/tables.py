"""The tables of the leaderboard: the paper's figures, ours, and what lies between them."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pelk_mm.engine.launch import load_config

from .. import complexity, mac_counter
from ..complexity import count_complexity, default_shape
from ..model_building import build_model
from ..paper import load_paper_tables
from .catalogue import Entry, command_of, shown_path
from .runs import METRICS, Problem, Run

# What configs without any figure are compared by.
_METRICS_OF_SCOPE = dict(mmpretrain=('top1', ), mmseg=('miou', ), mmdet=('ap_box', 'ap_mask'))
_METRICS_OF_DATA = {
    'ImageNet-1k': _METRICS_OF_SCOPE['mmpretrain'],
    'ADE20K': _METRICS_OF_SCOPE['mmseg'],
    'COCO': _METRICS_OF_SCOPE['mmdet']
}

_FIGURES_NOTE = 'The figures beside ours are those of the metafile, which names their source. '
_COSTS_NOTE = ('Costs are counted for runs, for the size of image at which papers count them: segmentation 2048x512, '
               'detection 1280x800.')

# Density of the sparse networks of the paper, for pretrained zeros whose number no log tells.
PAPER_DENSITY = 0.6


@dataclass(frozen=True)
class Quantity:
    """What a group of columns shows.

    Attributes:
        name (str): Heads the columns.
        unit (str): Its unit.
        digits (int): Decimals shown.
        is_cost (bool): Whether it is a cost, and not what a run achieves.
        has_difference (bool): Whether ours less the paper's says something.
    """

    name: str
    unit: str
    digits: int = 1
    is_cost: bool = False
    has_difference: bool = True


QUANTITIES = {
    'top1': Quantity('Top-1', '%'),
    'miou': Quantity('mIoU', '%'),
    'ap_box': Quantity('box AP', '%'),
    'ap_mask': Quantity('mask AP', '%'),
    'throughput': Quantity('Throughput', 'images/s', 0, has_difference=False),
    'relative': Quantity('to SLaK-T', 'times', 2),
    'params': Quantity('Params', 'M', 1, is_cost=True),
    'flops': Quantity('FLOPs', 'G', 1, is_cost=True),
}

# Number -> key in paper_tables.json, title.
PAPER_TABLES = {
    2: ('table2_ade20k', 'Table 2: ADE20K, semantic segmentation with UperNet'),
    3: ('table3_coco', 'Table 3: COCO, Cascade Mask R-CNN'),
    4: ('table4_imagenet', 'Table 4: ImageNet-1K classification'),
}
THROUGHPUT_TABLE = 'table8_throughput'
# What the paper calls a model -> what tools/benchmarks/throughput.py does.
_BENCHMARKED = {'PeLK-101-T': 'PeLK-T-101'}


@dataclass(frozen=True)
class Value:
    """One quantity of one row.

    Attributes:
        paper (float | None): What the paper prints.
        ours (tuple[float, ...]): What was measured here, one value a run.
    """

    paper: float | None = None
    ours: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over the runs."""
        return statistics.fmean(self.ours) if self.ours else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the runs, None of fewer than two."""
        return statistics.stdev(self.ours) if len(self.ours) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.paper is None or self.mean is None else self.mean - self.paper


@dataclass
class Row:
    """A model, or one of several settings of it.

    Attributes:
        name (str): As the paper calls it, else the name of its config.
        values (dict[str, Value]): By keys of ``QUANTITIES``.
        status (str): ``'run'``; ``'changed'``: run with other settings than the config of that name has now;
            ``'unfinished'``, ``'not run'`` or ``'no config'``.
        remark (str): What else to know about the status.
        config (str): Path of the config in the repository, '' if there is none.
        hash (str): Digest of the config that was run.
        command (str): What to type to run it (again).
        environment (str): On what it was run.
        sources (list[str]): The files that the numbers are from.
    """

    name: str
    values: dict[str, Value]
    status: str = 'not run'
    remark: str = ''
    config: str = ''
    hash: str = ''
    command: str = ''
    environment: str = ''
    sources: list[str] = field(default_factory=list)


@dataclass
class Table:
    """Rows that can be compared.

    Attributes:
        key (str): Short, for anchors and files.
        title (str): Heads it.
        note (str): How the numbers are meant.
        quantities (list[str]): Keys of ``QUANTITIES``.
        rows (list[Row]): The rows.
        is_of_paper (bool): Whether it is one that the paper prints.
    """

    key: str
    title: str
    note: str
    quantities: list[str]
    rows: list[Row]
    is_of_paper: bool = False


class CostCounter:
    """Parameters and FLOPs of configs, counted once each and kept in a file.

    Args:
        cache (Path, optional): The file, JSON. None keeps nothing.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache
        self._known: dict[str, dict[str, float]] = {}
        if cache is not None and cache.is_file():
            self._known = json.loads(cache.read_text(encoding='utf-8'))
        # Other ways to count make other numbers.
        self._version = [Path(str(module.__file__)).read_text(encoding='utf-8') for module in (complexity, mac_counter)]

    def count(self, cfg: Config, density: float) -> dict[str, float]:
        """``params`` in M and ``flops`` in G multiply-adds, in dense form, of one image of the size papers count.

        Raises:
            Exception: Whatever building or running the model raises.
        """
        shape = default_shape(cfg)
        text = json.dumps([cfg.model.to_dict(), shape, density, self._version], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if key not in self._known:
            counted = count_complexity(build_model(cfg), shape, density)
            self._known[key] = dict(params=counted.total.params_counted / 1e6, flops=counted.total.macs / 1e9)
            if self.cache is not None:
                self.cache.parent.mkdir(parents=True, exist_ok=True)
                self.cache.write_text(json.dumps(self._known, indent=1), encoding='utf-8')
        return self._known[key]


class Leaderboard:
    """Collects the tables.

    Args:
        runs (Sequence[Run]): From :func:`find_runs`.
        entries (Sequence[Entry]): From :func:`read_catalogue`.
        root (Path): The repository.
        counter (CostCounter, optional): Counts params and FLOPs. None leaves our columns of them empty.
        progress (Callable, optional): Called with the name of each row before it is made.
    """

    def __init__(self,
                 runs: Sequence[Run],
                 entries: Sequence[Entry],
                 root: Path,
                 counter: CostCounter | None = None,
                 progress: Callable[[str], None] = lambda name: None) -> None:
        self.entries, self.root, self.counter, self.progress = entries, root, counter, progress
        self.problems: list[Problem] = []
        self._runs: dict[str, dict[str, list[Run]]] = {}
        for run in runs:
            self._runs.setdefault(run.name, {}).setdefault(run.hash, []).append(run)

    def paper_tables(self, throughput: Iterable[tuple[Path, Mapping[str, Any]]] = ()) -> list[Table]:
        """The paper's Tables 2, 3, 4 and 8.

        Args:
            throughput (Iterable[tuple[Path, Mapping[str, Any]]]): Results of ``tools/benchmarks/throughput.py``, with
                the files that they are from.
        """
        printed = load_paper_tables()
        tables = []
        for key, title in PAPER_TABLES.values():
            quantities = [name for name in QUANTITIES if name in printed[key]['rows'][0]]
            rows = [row for line in printed[key]['rows'] for row in self._paper_rows(line, quantities)]
            note = printed[key].get('note', 'FLOPs at the size in the row')
            tables.append(Table(key, title, note, quantities, rows, is_of_paper=True))
        return [*tables, _throughput_table(printed[THROUGHPUT_TABLE], throughput)]

    def own_tables(self) -> list[Table]:
        """A table for each folder of configs that the paper's tables do not show, those with runs first.

        And one for each data set of runs of configs from elsewhere.
        """
        groups: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
        for entry in self.entries:
            if entry.table not in PAPER_TABLES or not entry.row:
                figures = {name: Value(figure) for name, figure in entry.figures.items()}
                for runs in self._variants(entry.name):
                    row = self._row(entry.name, entry, runs, figures, count=bool(runs))
                    groups.setdefault((entry.folder, self._metrics(entry, runs)), []).append(row)
        known = {entry.name: entry for entry in self.entries}
        for name in self._runs.keys() - known.keys():
            # Sweeps add a digest to the name of the config that they derive theirs from.
            origin = known.get(re.sub(r'_[0-9a-f]{10}$', '', name))
            for runs in self._variants(name):
                group = f'{origin.folder if origin else "other configs"}, on {_data(runs[0].config)}'
                row = self._row(origin.name if origin else name, None, runs, {})
                groups.setdefault((group, self._metrics(None, runs)), []).append(row)
        tables = []
        for (group, metrics), rows in sorted(groups.items()):
            quantities = [*metrics, *(name for name in ('params', 'flops') if any(name in row.values for row in rows))]
            what = ', '.join(QUANTITIES[name].name for name in metrics) or 'no metric yet'
            key = re.sub(r'\W+', '-', f'{group} {what}'.lower()).strip('-')
            has_figures = any(value.paper is not None for row in rows for value in row.values.values())
            note = (_FIGURES_NOTE if has_figures else '') + _COSTS_NOTE
            tables.append(Table(key, f'{group}: {what}', note, quantities, sorted(rows, key=lambda row: row.name)))
        return sorted(tables, key=lambda table: all(row.status == 'not run' for row in table.rows))

    def _paper_rows(self, line: Mapping[str, Any], quantities: list[str]) -> list[Row]:
        name = f'{line["method"]}, {line["size"]}px' if 'size' in line else line['method']
        paper = {quantity: Value(line[quantity]) for quantity in quantities}
        for entry in self.entries:
            if entry.path.as_posix() in line.get('configs', ()):
                return [self._row(name, entry, runs, paper) for runs in self._variants(entry.name)]
        return [Row(name, paper, 'no config', line.get('reason', ''))]

    def _variants(self, name: str) -> list[list[Run]]:
        """The runs of a config, those with the same settings together; one empty list if there are none."""
        return list(self._runs.get(name, {}).values()) or [[]]

    def _row(self,
             name: str,
             entry: Entry | None,
             runs: Sequence[Run],
             paper: Mapping[str, Value],
             count: bool = True) -> Row:
        """A row of repeated runs of one config, or of none."""
        self.progress(name)
        finished = [run for run in runs if run.is_finished]
        values = dict(paper)
        for metric in METRICS:
            ours = tuple(run.metrics[metric] for run in finished if metric in run.metrics)
            if ours or metric in values:
                values[metric] = Value(values.get(metric, Value()).paper, ours)
        if count and self.counter is not None:
            for quantity, number in self._costs(entry, runs).items():
                values[quantity] = Value(values.get(quantity, Value()).paper, (number, ))
        row = Row(name, values, config=str(entry.path) if entry else '')
        if runs:
            self._tell(row, entry, runs, finished or runs)
        else:
            row.command = f'python tools/train.py {row.config}'
        return row

    def _tell(self, row: Row, entry: Entry | None, runs: Sequence[Run], told: Sequence[Run]) -> None:
        """Say in a row how its runs were made, and where they stand."""
        first = told[0]
        row.hash = first.hash
        if len(self._runs[first.name]) > 1:
            row.name += f' [{row.hash}]'
        row.command, changed = command_of(first, entry, self.root)
        row.status = 'unfinished' if not first.is_finished else 'run' if changed == [] else 'changed'
        row.environment = '; '.join(dict.fromkeys(_environment(run) for run in told))
        row.sources = [shown_path(run.source or run.folder) for run in told]
        remarks = [f'{len(told)} runs, seeds {", ".join(run.seed or "?" for run in told)}'] if len(told) > 1 else []
        remarks += [', '.join(dict.fromkeys(run.measured for run in told if run.measured))]
        remarks += [
            f'{run.folder.name} stands at {run.unit} {run.progress[0]} of {run.progress[1]}' for run in runs
            if run.progress and not run.is_finished
        ]
        if changed is None:
            remarks.append('its config is not the present one of that name')
        elif changed:
            remarks.append(f'changed: {", ".join(changed)}')
        row.remark = '; '.join(filter(None, remarks))

    def _costs(self, entry: Entry | None, runs: Sequence[Run]) -> dict[str, float]:
        assert self.counter is not None
        name = entry.name if entry else runs[0].name
        try:
            cfg = Config(runs[0].config) if runs else load_config(str(self.root /
                                                                      entry.path))  # type: ignore[union-attr]
            return self.counter.count(cfg, _density(cfg, runs))
        except Exception as error:  # whatever a model raises that cannot be counted; its row stays
            self.problems.append(Problem(name, f'params and FLOPs were not counted: {type(error).__name__}: {error}'))
            return {}

    def _metrics(self, entry: Entry | None, runs: Sequence[Run]) -> tuple[str, ...]:
        """The metrics that a row is compared by."""
        found = {metric for run in runs for metric in run.metrics} | set(entry.figures if entry else ())
        if not found and entry is not None and entry.data in _METRICS_OF_DATA:
            found = set(_METRICS_OF_DATA[entry.data])
        elif not found:
            config = runs[0].config if runs else load_config(str(self.root / entry.path))  # type: ignore[union-attr]
            found = set(_METRICS_OF_SCOPE.get(config.get('default_scope', ''), ()))
        return tuple(metric for metric in METRICS if metric in found)


def _throughput_table(printed: Mapping[str, Any], results: Iterable[tuple[Path, Mapping[str, Any]]]) -> Table:
    """The paper's Table 8; each of our devices has its own rows, of fp32 and, if it was measured, of TF32."""
    papers = {line['model']: line['throughput'] for line in printed['rows']}
    rows = []
    for path, result in results:
        environment = result['environment']
        command = f'python tools/benchmarks/throughput.py --device {environment["device"]} --json FILE'
        facts = ((name, environment.get(name)) for name in ('device_name', 'torch', 'python', 'commit'))
        machine = ', '.join(f'{name} {fact}' for name, fact in facts if fact)
        for dtype, option in (('fp32', ''), ('tf32', ' --tf32')):
            timings = result['inference'].get(dtype, {})
            for model, paper in papers.items() if timings or not option else ():
                ours, base = (timings.get(name, {}).get('images_per_second')
                              for name in (_BENCHMARKED.get(model, model), 'SLaK-T'))
                values = dict(
                    throughput=Value(paper, () if ours is None else (ours, )),
                    relative=Value(paper / papers['SLaK-T'], (ours / base, ) if ours and base else ()))
                row = Row(model, values, 'not run' if ours is None else 'run', f'{dtype}, {result["setting"]}')
                row.command, row.environment, row.sources = command + option, machine, [shown_path(path)]
                rows.append(row)
    if not rows:
        rows = [
            Row(model,
                dict(throughput=Value(paper), relative=Value(paper / papers['SLaK-T'])),
                command='python tools/benchmarks/throughput.py --json FILE') for model, paper in papers.items()
        ]
    return Table(
        THROUGHPUT_TABLE,
        'Table 8: throughput of inference',
        f'Paper: {printed["note"]}. Images per second of different devices cannot be compared; ratios can.',
        ['throughput', 'relative'],
        rows,
        is_of_paper=True)


def _density(cfg: Config, runs: Sequence[Run]) -> float:
    """Share of non-zero weights: as logged, else as the hook is told, else as in the paper."""
    logged = [run.density for run in runs if run.density is not None]
    if logged:
        return logged[0]
    for hook in cfg.get('custom_hooks') or ():
        if hook['type'] in ('DynamicSparsityHook', 'pelk_mm.DynamicSparsityHook'):
            return 1 - hook['sparsity'] if hook.get('sparsity') is not None else PAPER_DENSITY
    return 1.0


def _data(config: Mapping[str, Any]) -> str:
    """Name of the data set of a config."""
    dataset = (config.get('val_dataloader') or config.get('test_dataloader') or {}).get('dataset') or {}
    return Path(str(dataset.get('data_root') or config.get('data_root') or dataset.get('type', 'unknown data'))).name


def _environment(run: Run) -> str:
    processes = run.environment.get('processes', '1')
    return ', '.join([
        f'{name} {run.environment[name]}'
        for name in ('Python', 'PyTorch', 'MMEngine', 'CUDA', 'GPU') if name in run.environment
    ] + [f'{processes} process' + ('es' if processes != '1' else '')])
