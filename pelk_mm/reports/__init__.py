"""Reports of trainings: the leaderboard, and sweeps over the tables of configs."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.reports')

from .catalogue import Entry, read_catalogue
from .commands import Launcher
from .costs import CostCounter
from .leaderboard import Leaderboard
from .metrics import METRICS, QUANTITIES
from .pages import to_csv, to_html, to_markdown
from .run_files import Problem
from .runs import Run, find_runs
from .sweeps import Trial, plan_sweep, save_sweep, sweep_markdown, sweep_table
from .tables import Row, Table, Value

__all__ = [
    'METRICS', 'QUANTITIES', 'CostCounter', 'Entry', 'Launcher', 'Leaderboard', 'Problem', 'Row', 'Run', 'Table',
    'Trial', 'Value', 'find_runs', 'plan_sweep', 'read_catalogue', 'save_sweep', 'sweep_markdown', 'sweep_table',
    'to_csv', 'to_html', 'to_markdown'
]
