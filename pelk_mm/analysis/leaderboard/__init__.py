"""The paper's tables with our runs beside them, and tables of our own."""

from .catalogue import Entry, read_catalogue
from .pages import to_csv, to_html, to_markdown
from .runs import Problem, Run, find_runs
from .tables import CostCounter, Leaderboard, Row, Table, Value

__all__ = [
    'CostCounter', 'Entry', 'Leaderboard', 'Problem', 'Row', 'Run', 'Table', 'Value', 'find_runs', 'read_catalogue',
    'to_csv', 'to_html', 'to_markdown'
]
