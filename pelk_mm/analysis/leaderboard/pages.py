"""The leaderboard as Markdown, CSV and one HTML page that needs nothing but a browser."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from prettytable import PrettyTable, TableStyle

from .plots import plot_table
from .runs import Problem
from .tables import QUANTITIES, Row, Table, Value

_CSV_COLUMNS = ('table', 'row', 'quantity', 'unit', 'paper', 'ours', 'difference', 'spread', 'runs', 'status', 'config',
                'config_hash', 'command', 'environment', 'remark', 'sources')
# What spreadsheet programs may take for the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = re.compile(r'[=+\-@\s]')


def columns(table: Table, quantity: str) -> list[str]:
    """The columns of a quantity in a table: ``paper``, ``ours``, ``difference``; without any figure, ours alone."""
    if not any(row.values.get(quantity, Value()).paper is not None for row in table.rows):
        return ['ours']
    return ['paper', 'ours', *(['difference'] if QUANTITIES[quantity].has_difference else [])]


def cells(row: Row, quantity: str) -> dict[str, tuple[str, float | None]]:
    """What stands in the columns of a quantity: by column, the text and the number to sort by."""
    value, kind = row.values.get(quantity, Value()), QUANTITIES[quantity]
    # Costs are shown as the paper prints them, in whole numbers or not.
    paper = '' if value.paper is None else str(value.paper) if kind.is_cost else f'{value.paper:.{kind.digits}f}'
    if value.mean is None:
        ours = '' if kind.is_cost or row.status in ('run', 'changed') else row.status
    else:
        ours = f'{value.mean:.2g}' if 0 < value.mean < 1 else f'{value.mean:.{kind.digits}f}'
        if value.spread is not None:
            ours += f' ± {value.spread:.{kind.digits + 1}f} ({len(value.ours)})'
    difference = value.difference
    # Adding zero turns -0.0 to 0.0.
    text = '' if difference is None else f'{round(difference, kind.digits) + 0:+.{kind.digits}f}'
    return dict(paper=(paper, value.paper), ours=(ours, value.mean), difference=(text, difference))


def to_markdown(tables: Sequence[Table], problems: Sequence[Problem], made: str) -> str:
    """The tables, with the commands and environments of their runs below each.

    Args:
        tables (Sequence[Table]): The tables.
        problems (Sequence[Problem]): What was left out.
        made (str): When and by what the page was made.
    """
    parts = ['# Leaderboard', made]
    for table in tables:
        shown = [(name, column) for name in table.quantities for column in columns(table, name)]
        header = [f'{QUANTITIES[name].name} ({QUANTITIES[name].unit}), {column}' for name, column in shown]
        text = PrettyTable(['Model', *header, 'Status'])
        for row in table.rows:
            text.add_row([_plain(row.name), *(cells(row, name)[column][0] for name, column in shown), row.status])
        text.set_style(TableStyle.MARKDOWN)
        text.align = 'r'
        text.align['Model'] = text.align['Status'] = 'l'
        parts += [f'## {_plain(table.title)}', _plain(table.note), text.get_string()]
        runs = [
            f'- **{_plain(row.name)}**: {_plain(row.remark)}  \n  {_code(row.command)}  \n  config '
            f'{_plain(row.config) or "from elsewhere"}, hash {row.hash or "-"}; {_plain(row.environment)}'
            for row in table.rows if row.hash or row.sources
        ]
        parts += ['\n'.join(runs)] if runs else []
    if problems:
        parts += ['## Left out', '\n'.join(f'- {_code(problem.where)} {_plain(problem.text)}' for problem in problems)]
    return '\n\n'.join(parts) + '\n'


def _plain(text: str) -> str:
    """Text of one line that no reader of Markdown takes for HTML or for the border of a cell."""
    return html.escape(' '.join(text.split()), quote=False).replace('|', '&#124;')


def _code(text: str) -> str:
    """Text of one line as code, whatever quotes it holds."""
    text, fence = ' '.join(text.splitlines()), '`'
    while fence in text:
        fence += '`'
    return f'{fence} {text} {fence}' if '`' in text else f'`{text}`'


def to_csv(tables: Sequence[Table]) -> str:
    """A line for each quantity of each row; numbers in full.

    Names of runs come from folders and files of anyone: every text is one line, and an apostrophe stands before what a
    spreadsheet would run as a formula.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator='\n')
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            for name in table.quantities:
                value = row.values.get(name, Value())
                line = dict(
                    table=table.key,
                    row=row.name,
                    quantity=name,
                    unit=QUANTITIES[name].unit,
                    paper=value.paper,
                    ours=value.mean,
                    difference=value.difference if QUANTITIES[name].has_difference else None,
                    spread=value.spread,
                    runs=len(value.ours) if not QUANTITIES[name].is_cost else None,
                    status=row.status,
                    config=row.config,
                    config_hash=row.hash,
                    command=row.command,
                    environment=row.environment,
                    remark=row.remark,
                    sources=' '.join(row.sources))
                writer.writerow({column: _harmless(cell) for column, cell in line.items()})
    return text.getvalue()


def _harmless(cell: str | float | None) -> str | float | None:
    if not isinstance(cell, str):
        return cell
    # csv does not quote a mere carriage return, after which another row would begin.
    line = ' '.join(cell.splitlines())
    return f"'{line}" if _FORMULA.match(line) else line


def to_html(tables: Sequence[Table], problems: Sequence[Problem], made: str) -> str:
    """One page with everything in it: styles, script and plots. It loads nothing.

    Args:
        tables (Sequence[Table]): The tables.
        problems (Sequence[Problem]): What was left out.
        made (str): When and by what the page was made.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(files(__package__).joinpath('page.html').read_text(encoding='utf-8'))
    return template.render(
        tables=tables,
        plots={
            table.key: plot_table(table)
            for table in tables
        },
        quantities=QUANTITIES,
        columns=columns,
        cells=cells,
        problems=problems,
        made=made)
