"""The former place of :mod:`pelk_mm.reports`."""

from ..reports import (  # noqa: F401
    CostCounter,
    Entry,
    Leaderboard,
    Problem,
    Row,
    Run,
    Table,
    Value,
    find_runs,
    read_catalogue,
    to_csv,
    to_html,
    to_markdown,
)
