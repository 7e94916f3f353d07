"""The tables of every report: the paper's figures beside ours."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .metrics import QUANTITIES

# Spreadsheet programs may take these for the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = re.compile(r'[=+\-@\s]')


@dataclass(frozen=True)
class Value:
    """One quantity of one row.

    Attributes:
        paper (float | None): The paper's figure.
        ours (tuple[float, ...]): Our measurements, one a run.
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
        """Ours - paper."""
        return None if self.paper is None or self.mean is None else self.mean - self.paper


@dataclass
class Row:
    """A model, or one of several settings of it.

    Attributes:
        name (str): As the paper calls it, else the name of its config.
        values (dict[str, Value]): By keys of ``QUANTITIES``.
        status (str): ``'run'``; ``'changed'``: run with other settings than the config of that name has now;
            ``'unfinished'``, ``'not run'`` or ``'no config'``.
        remark (str): Details of the status.
        config (str): Path of the config in the repository, '' if absent.
        hash (str): Digest of the config that was run.
        command (str): Runs it (again).
        environment (str): Versions, devices and processes of its runs.
        sources (list[str]): The files that the numbers are from.
        labels (dict[str, str]): Cells that stand in the place of the name, by column.
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
    labels: dict[str, str] = field(default_factory=dict)

    def value(self, quantity: str) -> Value:
        """Return the value of a quantity, empty if the row has none."""
        return self.values.get(quantity, Value())

    def cells(self, quantity: str) -> dict[str, tuple[str, float | None]]:
        """Return the text and the number of the columns ``paper``, ``ours`` and ``difference`` of a quantity."""
        value, kind = self.value(quantity), QUANTITIES[quantity]
        # Costs are shown as the paper prints them, in integers or not.
        paper = '' if value.paper is None else str(value.paper) if kind.is_cost else f'{value.paper:.{kind.digits}f}'
        if value.mean is None:
            ours = '' if kind.is_cost or self.status in ('run', 'changed') else self.status
        else:
            ours = f'{value.mean:.2g}' if 0 < value.mean < 1 else f'{value.mean:.{kind.digits}f}'
            if value.spread is not None:
                ours += f' ± {value.spread:.{kind.digits + 1}f} ({len(value.ours)})'
        # Adding zero turns -0.0 to 0.0.
        difference = '' if value.difference is None else f'{round(value.difference, kind.digits) + 0:+.{kind.digits}f}'
        return dict(paper=(paper, value.paper), ours=(ours, value.mean), difference=(difference, value.difference))


@dataclass
class Table:
    """Rows that can be compared.

    Attributes:
        key (str): Short, for anchors and files.
        title (str): Heading.
        note (str): How the numbers are meant.
        quantities (list[str]): Keys of ``QUANTITIES``.
        rows (list[Row]): The rows.
        is_of_paper (bool): Whether the paper prints it.
    """

    key: str
    title: str
    note: str
    quantities: list[str]
    rows: list[Row]
    is_of_paper: bool = False

    def columns(self, quantity: str) -> list[str]:
        """Return the columns of a quantity: ``paper``, ``ours``, ``difference``; only ours if none is published."""
        if all(row.value(quantity).paper is None for row in self.rows):
            return ['ours']
        return ['paper', 'ours', *(['difference'] if QUANTITIES[quantity].has_difference else [])]


def to_csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Return lines as CSV, with every text harmless.

    Names of runs come from folders and files of anyone: each text becomes one line, and an apostrophe stands before one
    that a spreadsheet would run as a formula.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([_harmless(cell) for cell in line] for line in lines)
    return text.getvalue()


def _harmless(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    # csv does not quote a carriage return without a line feed, after which another row would begin.
    line = ' '.join(cell.splitlines())
    return f"'{line}" if _FORMULA.match(line) else line
