"""The table of a sweep: the paper's figures beside ours, as Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from prettytable import PrettyTable, TableStyle

from .figures import COLORS
from .sweeps import Trial


@dataclass
class Row:
    """A row of the table.

    Attributes:
        labels (dict[str, str]): What it is, by column.
        trials (dict[str, Trial]): By name of the metric.
    """

    labels: dict[str, str]
    trials: dict[str, Trial] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepTable:
    """What the trials of a sweep have come to.

    Attributes:
        title (str): What the table is called.
        rows (Sequence[Row]): The rows.
        ours (str): What our columns are called.
    """

    title: str
    rows: Sequence[Row]
    ours: str = 'ours'

    @classmethod
    def from_trials(cls, title: str, trials: Sequence[Trial], ours: str = 'ours') -> SweepTable:
        """Trials with the same labels, a classifier and its segmentor, are one row."""
        rows: list[Row] = []
        for trial in trials:
            row = next((row for row in rows if row.labels == trial.labels), None)
            if row is None:
                rows.append(row := Row(trial.labels))
            row.trials[trial.metric.name] = trial
        return cls(title, rows, ours)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in the order in which they come."""
        return list(dict.fromkeys(name for row in self.rows for name in row.trials))

    @property
    def header(self) -> list[str]:
        """Names of the columns."""
        labels = dict.fromkeys(column for row in self.rows for column in row.labels)
        return [*labels, *(f'{name}, {column}' for name in self.metrics for column in ('paper', self.ours))]

    def cells(self, missing: str = '', unknown: str = '') -> list[list[str]]:
        """The table as text.

        Args:
            missing (str): Stands where there is no result yet.
            unknown (str): Stands where the paper gives no figure.
        """
        lines = []
        for row in self.rows:
            line = [row.labels.get(column, '') for column in self.header[:-2 * len(self.metrics)]]
            for name in self.metrics:
                trial = row.trials.get(name)
                paper, result = (trial.paper, trial.result) if trial else (None, None)
                line += [unknown if paper is None else f'{paper:.1f}', missing if result is None else f'{result:.1f}']
            lines.append(line)
        return lines

    def to_markdown(self) -> str:
        """The table to read, plain or rendered."""
        table = PrettyTable(self.header)
        table.add_rows(self.cells(missing='not run', unknown='-'))
        table.set_style(TableStyle.MARKDOWN)
        for index, column in enumerate(self.header):
            table.align[column] = 'l' if index < len(self.header) - 2 * len(self.metrics) else 'r'
        return table.get_string()

    def to_dict(self) -> dict:
        """All that is known, in plain types."""
        rows = [
            dict(
                row.labels,
                **{
                    name: dict(
                        config=str(trial.config),
                        checkpoint=str(trial.checkpoint),
                        paper=trial.paper,
                        source=trial.source,
                        ours=trial.result)
                    for name, trial in row.trials.items()
                }) for row in self.rows
        ]
        return dict(title=self.title, ours=self.ours, rows=rows)

    def draw(self) -> Figure:
        """The figures as points: a panel for each metric and each of the paper and us, as their scales differ."""
        panels = [(name, column) for name in self.metrics for column in ('paper', self.ours)]
        names = [', '.join(f'{column} {label}' for column, label in row.labels.items()) for row in self.rows]
        size = (0.08 * max(map(len, names)) + 2.5 * len(panels), 1.2 + 0.4 * len(names))
        figure = Figure(figsize=size, layout='constrained')
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        positions = range(len(names))
        for axis, (name, column) in zip(axes, panels):
            trials = [row.trials.get(name) for row in self.rows]
            values = [trial and (trial.paper if column == 'paper' else trial.result) for trial in trials]
            points = [(value, position) for value, position in zip(values, positions) if value is not None]
            axis.plot(*zip(*points) if points else ((), ()), 'o', color=COLORS[0 if column == 'paper' else 1])
            for value, position in points:
                axis.annotate(
                    f'{value:.1f}', (value, position), xytext=(0, 5), textcoords='offset points', ha='center')
            axis.set_title(f'{name}, {column}' if points else f'{name}, {column}: none')
            axis.set_xlabel('%')
            axis.margins(x=0.25)
            axis.grid(axis='y', alpha=0.3)
        axes[0].set_yticks(positions, names)
        axes[0].set_ylim(len(names) - 0.4, -0.8)
        return figure

    def save(self, folder: Path) -> list[Path]:
        """Write ``table.md``, ``.csv``, ``.json`` and ``.png``, over those of the same sweep before it was finished.

        Args:
            folder (Path): Is made.

        Returns:
            list[Path]: The files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f'table{ending}' for ending in ('.md', '.csv', '.json', '.png')]
        files[0].write_text(f'# {self.title}\n\n{self.to_markdown()}\n', encoding='utf-8')
        with open(files[1], 'w', encoding='utf-8', newline='') as file:
            csv.writer(file).writerows([self.header, *self.cells()])
        files[2].write_text(json.dumps(self.to_dict(), indent=1) + '\n', encoding='utf-8')
        self.draw().savefig(files[3], dpi=100)
        return files
