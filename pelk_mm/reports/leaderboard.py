"""The paper's tables with our runs beside them, and tables of the other runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pelk_mm.engine.launch import load_config

from ..analysis import load_paper_tables
from .catalogue import Entry
from .commands import command_of, shown_path
from .costs import CostCounter, density_of
from .metrics import METRICS, QUANTITIES
from .run_files import Problem, Problems
from .runs import Run
from .tables import Row, Table, Value

_FIGURES_NOTE = 'The figures beside ours are those of the metafile, which names their source. '
_COSTS_NOTE = ('Costs are counted for runs, for the size of image at which papers count them: segmentation 2048x512, '
               'detection 1280x800.')
# Number -> key in paper_tables.json, title.
PAPER_TABLES = {
    2: ('table2_ade20k', 'Table 2: ADE20K, semantic segmentation with UperNet'),
    3: ('table3_coco', 'Table 3: COCO, Cascade Mask R-CNN'),
    4: ('table4_imagenet', 'Table 4: ImageNet-1K classification'),
}
THROUGHPUT_TABLE = 'table8_throughput'
# The paper's name of a model -> that of tools/benchmarks/throughput.py.
_BENCHMARKED = {'PeLK-101-T': 'PeLK-T-101'}


class Leaderboard:
    """Collect the tables.

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
        self.problems = Problems()
        self._runs: dict[str, dict[str, list[Run]]] = {}
        for run in runs:
            self._runs.setdefault(run.name, {}).setdefault(run.hash, []).append(run)

    def paper_tables(self, throughput: Iterable[tuple[Path, Mapping[str, Any]]] = ()) -> list[Table]:
        """Return the paper's Tables 2, 3, 4 and 8.

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
        """Return a table for each folder of configs that the paper's tables do not show, those with runs first.

        Each data set of runs of configs from elsewhere has a table, too.
        """
        known = {entry.name: entry for entry in self.entries}
        named: list[tuple[str, Entry | None]] = [
            (entry.name, entry) for entry in self.entries if entry.table not in PAPER_TABLES or not entry.row]
        named += [(name, None) for name in self._runs.keys() - known.keys()]
        groups: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
        for name, entry in named:
            # Sweeps add a digest to the name of the config that they derive theirs from.
            origin = entry or known.get(re.sub(r'_[0-9a-f]{10}$', '', name))
            group = origin.folder if origin else 'other configs'
            figures = {metric: Value(figure) for metric, figure in entry.figures.items()} if entry else {}
            for runs in self._variants(name):
                row = self._row(origin.name if origin else name, entry, runs, figures, count=bool(runs))
                place = group if entry else f'{group}, on {_data_of(runs[0].config)}'
                groups.setdefault((place, self._metrics(entry, runs)), []).append(row)
        tables = [_own_table(*key, rows) for key, rows in sorted(groups.items())]
        return sorted(tables, key=lambda table: all(row.status == 'not run' for row in table.rows))

    def _paper_rows(self, line: Mapping[str, Any], quantities: list[str]) -> list[Row]:
        name = f'{line["method"]}, {line["size"]}px' if 'size' in line else line['method']
        paper = {quantity: Value(line[quantity]) for quantity in quantities}
        for entry in self.entries:
            if entry.path.as_posix() in line.get('configs', ()):
                return [self._row(name, entry, runs, paper) for runs in self._variants(entry.name)]
        return [Row(name, paper, 'no config', remark=line.get('reason', ''))]

    def _variants(self, name: str) -> list[list[Run]]:
        """Return the runs of a config, those with the same settings together; one empty list if there are none."""
        return list(self._runs.get(name, {}).values()) or [[]]

    def _row(self, name: str, entry: Entry | None, runs: Sequence[Run], paper: Mapping[str, Value],
             count: bool = True) -> Row:
        """Return the row of repeated runs of one config, which may be none yet."""
        self.progress(name)
        finished = [run for run in runs if run.is_finished]
        ours = {metric: tuple(run.metrics[metric] for run in finished if metric in run.metrics) for metric in METRICS}
        if count and self.counter is not None:
            ours.update({quantity: (number, ) for quantity, number in self._costs(entry, runs).items()})
        row = Row(name, dict(paper), config=str(entry.path) if entry else '')
        row.values.update({key: Value(row.value(key).paper, numbers) for key, numbers in ours.items() if numbers})
        if runs:
            self._describe(row, entry, runs, finished or runs)
        else:
            row.command = f'python tools/train.py {row.config}'
        return row

    def _describe(self, row: Row, entry: Entry | None, runs: Sequence[Run], shown: Sequence[Run]) -> None:
        """Fill in how the runs of a row were made, and where they stand."""
        first = shown[0]
        row.hash = first.hash
        if len(self._runs[first.name]) > 1:
            row.name += f' [{row.hash}]'
        row.command, changed = command_of(first, entry, self.root)
        row.status = 'unfinished' if not first.is_finished else 'run' if changed == [] else 'changed'
        row.environment = '; '.join(dict.fromkeys(_environment_of(run) for run in shown))
        row.sources = [shown_path(run.source or run.folder) for run in shown]
        remarks = [f'{len(shown)} runs, seeds {", ".join(run.seed or "?" for run in shown)}'] * (len(shown) > 1)
        remarks += [', '.join(dict.fromkeys(run.measured for run in shown if run.measured))]
        remarks += [f'{run.folder.name} stands at {run.unit} {run.progress[0]} of {run.progress[1]}' for run in runs
                    if run.progress and not run.is_finished]
        remarks += ['its config is not the present one of that name'] if changed is None else []
        remarks += [f'changed: {", ".join(changed)}'] if changed else []
        row.remark = '; '.join(filter(None, remarks))

    def _config(self, entry: Entry | None, runs: Sequence[Run]) -> dict[str, Any]:
        return runs[0].config if runs or entry is None else load_config(str(self.root / entry.path)).to_dict()

    def _costs(self, entry: Entry | None, runs: Sequence[Run]) -> dict[str, float]:
        assert self.counter is not None
        try:
            cfg = Config(self._config(entry, runs))
            return self.counter.count(cfg, density_of(cfg, runs))
        except Exception as error:  # any model may fail to be counted; its row stays
            name, reason = entry.name if entry else runs[0].name, f'{type(error).__name__}: {error}'
            self.problems.append(Problem(name, f'params and FLOPs were not counted: {reason}'))
            return {}

    def _metrics(self, entry: Entry | None, runs: Sequence[Run]) -> tuple[str, ...]:
        """Return the metrics that a row is compared by: measured or published, else those of its data or toolbox."""
        found = {metric for run in runs for metric in run.metrics} | set(entry.figures if entry else ())
        found = found or {name for name, metric in METRICS.items() if entry and entry.data == metric.data}
        if not found:
            scope = self._config(entry, runs).get('default_scope', '')
            found = {name for name, metric in METRICS.items() if scope == metric.scope}
        return tuple(metric for metric in METRICS if metric in found)


def _own_table(group: str, metrics: Sequence[str], rows: list[Row]) -> Table:
    quantities = [*metrics, *(name for name in ('params', 'flops') if any(name in row.values for row in rows))]
    names = ', '.join(QUANTITIES[name].name for name in metrics) or 'no metric yet'
    key = re.sub(r'\W+', '-', f'{group} {names}'.lower()).strip('-')
    has_figures = any(value.paper is not None for row in rows for value in row.values.values())
    note = (_FIGURES_NOTE if has_figures else '') + _COSTS_NOTE
    return Table(key, f'{group}: {names}', note, quantities, sorted(rows, key=lambda row: row.name))


def _throughput_table(printed: Mapping[str, Any], results: Iterable[tuple[Path, Mapping[str, Any]]]) -> Table:
    """Return the paper's Table 8; each of our devices has its own rows, of fp32 and, if it was measured, of TF32."""
    papers = {line['model']: line['throughput'] for line in printed['rows']}
    rows = []
    measured: list[tuple[Path | None, Mapping[str, Any]]] = [*results] or [(None, {})]
    for path, result in measured:
        environment = result.get('environment', {})
        device = f'--device {environment["device"]} ' if environment else ''
        details = ', '.join(f'{name} {environment[name]}' for name in ('device_name', 'torch', 'python', 'commit')
                            if environment.get(name))
        for dtype, option in (('fp32', ''), ('tf32', ' --tf32')):
            timings = result.get('inference', {}).get(dtype, {})
            for model, paper in papers.items() if timings or not option else ():
                ours, base = (timings.get(name, {}).get('images_per_second')
                              for name in (_BENCHMARKED.get(model, model), 'SLaK-T'))
                values = dict(
                    throughput=Value(paper, () if ours is None else (ours, )),
                    relative=Value(paper / papers['SLaK-T'], (ours / base, ) if ours and base else ()))
                rows.append(Row(model, values, 'not run' if ours is None else 'run',
                                remark=f'{dtype}, {result["setting"]}' if result else '',
                                command=f'python tools/benchmarks/throughput.py {device}--json FILE{option}',
                                environment=details, sources=[shown_path(path)] if path else []))
    note = f'Paper: {printed["note"]}. Images per second of different devices cannot be compared; ratios can.'
    return Table(THROUGHPUT_TABLE, 'Table 8: throughput of inference', note, ['throughput', 'relative'], rows,
                 is_of_paper=True)


def _data_of(config: Mapping[str, Any]) -> str:
    """Return the name of the data set of a config."""
    loader = config.get('val_dataloader') or config.get('test_dataloader')
    dataset = loader.get('dataset') if isinstance(loader, Mapping) else None
    dataset = dataset if isinstance(dataset, Mapping) else {}
    return Path(str(dataset.get('data_root') or config.get('data_root') or dataset.get('type', 'unknown data'))).name


def _environment_of(run: Run) -> str:
    processes = run.environment.get('processes', '1')
    versions = [f'{name} {run.environment[name]}' for name in ('Python', 'PyTorch', 'MMEngine', 'CUDA', 'GPU')
                if name in run.environment]
    return ', '.join([*versions, f'{processes} process{"es" * (processes != "1")}'])
