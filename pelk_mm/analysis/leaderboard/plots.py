"""Accuracy against cost, as SVG that stands in a page and takes its colours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator

from .runs import METRICS
from .tables import QUANTITIES, Row, Table

WIDTH, HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 14, 42
# How many colours the page defines.
_COLORS = 8
# FLOPs that differ by less, as a share of the largest, say nothing of accuracy against cost.
_LEAST_SPREAD = 0.01


@dataclass(frozen=True)
class Point:
    """One marker.

    Attributes:
        row (str): Name of its row.
        family (str): What it is joined with by a line, e.g. ``'PeLK'``, with the size of the image if the row has it.
        is_ours (bool): Whether it was measured here.
        x (float): FLOPs in G.
        y (float): The metric.
    """

    row: str
    family: str
    is_ours: bool
    x: float
    y: float


def plot_table(table: Table) -> tuple[str, list[tuple[str, int]]]:
    """Draw the first metric of a table against FLOPs: hollow markers are the paper's, full ones ours.

    Returns:
        tuple[str, list[tuple[str, int]]]: The SVG, '' if all points have about the same FLOPs; and the legend,
        families and the numbers of their colours.
    """
    metric = next((name for name in table.quantities if name in METRICS), None)
    points = [] if metric is None else [point for row in table.rows for point in _points(row, metric)]
    costs = [point.x for point in points]
    if metric is None or not points or max(costs) - min(costs) <= _LEAST_SPREAD * max(costs):
        return '', []
    families = list(dict.fromkeys(point.family.partition(',')[0] for point in points))
    colors = {family: index % _COLORS for index, family in enumerate(families)}
    x_ticks, y_ticks = _ticks(costs), _ticks([point.y for point in points])

    def x_of(value: float) -> float:
        return _LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - _TOP - _BOTTOM)

    label = f'{QUANTITIES[metric].name} ({QUANTITIES[metric].unit})'
    title = escape(f'{label} against FLOPs: {table.title}')
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">']
    for value in x_ticks:
        parts.append(f'<line class="grid" x1="{x_of(value):.1f}" x2="{x_of(value):.1f}" y1="{_TOP}" '
                     f'y2="{HEIGHT - _BOTTOM}"/><text x="{x_of(value):.1f}" y="{HEIGHT - _BOTTOM + 15}" '
                     f'text-anchor="middle">{value:g}</text>')
    for value in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y_of(value):.1f}" '
                     f'y2="{y_of(value):.1f}"/><text x="{_LEFT - 6}" y="{y_of(value) + 4:.1f}" '
                     f'text-anchor="end">{value:g}</text>')
    parts.append(f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">FLOPs (G)</text>')
    parts.append(f'<text transform="translate(12 {(_TOP + HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
                 f'text-anchor="middle">{escape(label)}</text>')
    for family in dict.fromkeys(point.family for point in points):
        line = sorted((point.x, point.y) for point in points if point.family == family and not point.is_ours)
        if len(line) > 1:
            coordinates = ' '.join(f'{x_of(x):.1f},{y_of(y):.1f}' for x, y in line)
            parts.append(f'<polyline class="c{colors[family.partition(",")[0]]}" points="{coordinates}"/>')
    for point in points:
        who = 'ours' if point.is_ours else 'paper'
        parts.append(f'<circle class="c{colors[point.family.partition(",")[0]]} {who}" cx="{x_of(point.x):.1f}" '
                     f'cy="{y_of(point.y):.1f}" r="{5 if point.is_ours else 4}"><title>'
                     f'{escape(f"{point.row}, {who}: {point.y:.1f} % at {point.x:.4g} G")}</title></circle>')
    parts.append('</svg>')
    return ''.join(parts), list(colors.items())


def _points(row: Row, metric: str) -> list[Point]:
    value, cost = row.values.get(metric), row.values.get('flops')
    if value is None or cost is None:
        return []
    method, _, size = row.name.partition(', ')
    # PeLK-T, PeLK-B-101 and RepLKNet-31B are of PeLK and RepLKNet; names of configs are families of their own.
    family = re.sub(r'-(\d*[TSB])(-\d+)?$', '', method) + (f', {size}' if size else '')
    points = []
    if value.paper is not None and cost.paper is not None:
        points.append(Point(row.name, family, False, cost.paper, value.paper))
    x = cost.mean if cost.mean is not None else cost.paper
    if value.mean is not None and x is not None:
        points.append(Point(row.name, family, True, x, value.mean))
    return points


def _ticks(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    ticks = MaxNLocator(nbins=6, min_n_ticks=3).tick_values(low - margin, high + margin)
    if max(len(f'{tick:g}') for tick in ticks) > 5:
        # They would touch each other.
        ticks = MaxNLocator(nbins=3, min_n_ticks=3).tick_values(low - margin, high + margin)
    return [float(tick) for tick in ticks]
