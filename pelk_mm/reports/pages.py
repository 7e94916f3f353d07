"""The leaderboard as Markdown, CSV and one HTML page that needs nothing but a browser."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from ..analysis.text_tables import to_markdown_table
from .metrics import QUANTITIES
from .plots import plot_costs
from .run_files import Problem
from .tables import Table, to_csv_text


def to_markdown(tables: Sequence[Table], problems: Sequence[Problem], made: str) -> str:
    """Return the tables, with the commands and environments of their runs below each, and what was left out.

    ``made`` is the line below the title, with date and source.
    """
    parts = ['# Leaderboard', made]
    for table in tables:
        shown = [(name, column) for name in table.quantities for column in table.columns(name)]
        heads = [f'{QUANTITIES[name].name} ({QUANTITIES[name].unit}), {column}' for name, column in shown]
        lines = [[_plain(row.name), *(row.cells(name)[column][0] for name, column in shown), row.status]
                 for row in table.rows]
        grid = to_markdown_table(['Model', *heads, 'Status'], lines, ['Model', 'Status'])
        parts += [f'## {_plain(table.title)}', _plain(table.note), grid]
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
    """Return text of one line that no reader of Markdown takes for HTML or for the border of a cell."""
    return html.escape(' '.join(text.split()), quote=False).replace('|', '&#124;')


def _code(text: str) -> str:
    """Return text of one line as code, with a fence longer than any of its quotes."""
    text, fence = ' '.join(text.splitlines()), '`'
    while fence in text:
        fence += '`'
    return f'{fence} {text} {fence}' if '`' in text else f'`{text}`'


def to_csv(tables: Sequence[Table]) -> str:
    """Return a line for each quantity of each row, with all digits of the numbers."""
    lines: list[Sequence[object]] = [
        ('table', 'row', 'quantity', 'unit', 'paper', 'ours', 'difference', 'spread', 'runs', 'status', 'config',
         'config_hash', 'command', 'environment', 'remark', 'sources')]
    for table in tables:
        for row in table.rows:
            for name in table.quantities:
                value, kind = row.value(name), QUANTITIES[name]
                lines.append((table.key, row.name, name, kind.unit, value.paper, value.mean,
                              value.difference if kind.has_difference else None, value.spread,
                              None if kind.is_cost else len(value.ours), row.status, row.config, row.hash, row.command,
                              row.environment, row.remark, ' '.join(row.sources)))
    return to_csv_text(lines)


def to_html(tables: Sequence[Table], problems: Sequence[Problem], made: str) -> str:
    """Return what :func:`to_markdown` does as one page with everything in it, styles, script and plots."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(files(__package__).joinpath('page.html').read_text(encoding='utf-8'))
    plots = {table.key: plot_costs(table) for table in tables}
    return template.render(tables=tables, plots=plots, quantities=QUANTITIES, problems=problems, made=made)
