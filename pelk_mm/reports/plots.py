"""The plots of reports: results against costs for the page, and the panels of a sweep."""

from __future__ import annotations

import io
import re
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from ..analysis.figures import COLORS
from .metrics import METRICS, QUANTITIES
from .tables import Row, Table

# The page defines these colours, for light and dark. matplotlib takes only numbers: each stands for a name.
_VARIABLES = {f'#{number:06x}': f'var(--{name})' for number, name in enumerate(
    ('line', 'page', *(f'c{index}' for index in range(8))), 1)}
_LINE, _PAGE, *_COLORS = _VARIABLES
# FLOPs that differ by less, as a share of the largest, say nothing of results against costs.
_LEAST_SPREAD = 0.01


class _Point(NamedTuple):
    """One marker: its row, its method, with the size of the image if the row has it, FLOPs in G and the metric."""

    row: str
    method: str
    size: str
    who: str
    x: float
    y: float


def plot_costs(table: Table) -> tuple[str, list[tuple[str, int]]]:
    """Plot the first metric of a table against FLOPs: hollow markers are the paper's, full ones ours.

    Returns:
        tuple[str, list[tuple[str, int]]]: SVG that takes the colours of the page, '' if all points have about the same
        FLOPs; and the legend, methods and the numbers of their colours.
    """
    metric = next((name for name in table.quantities if name in METRICS), None)
    points = [] if metric is None else [point for row in table.rows for point in _points(row, metric)]
    costs = [point.x for point in points]
    if metric is None or not points or max(costs) - min(costs) <= _LEAST_SPREAD * max(costs):
        return '', []
    methods = dict.fromkeys(point.method for point in points)
    colors = {method: index % len(_COLORS) for index, method in enumerate(methods)}
    figure = Figure(figsize=(420 / 72, 300 / 72), layout='constrained')
    label = f'{QUANTITIES[metric].name} ({QUANTITIES[metric].unit})'
    style: dict[Any, Any] = {
        'svg.fonttype': 'none', 'svg.hashsalt': table.key, 'font.size': 12, 'axes.formatter.useoffset': False,
        'axes.axisbelow': True, 'lines.markersize': 9, 'lines.markeredgewidth': 1.8}
    with matplotlib.rc_context(style):
        axis = figure.subplots()
        axis.spines[:].set_visible(False)
        axis.set(xlabel='FLOPs (G)', ylabel=label, xmargin=0.08, ymargin=0.08)
        axis.grid(color=_LINE)
        axis.tick_params(length=0)
        axis.locator_params(axis='x', nbins=4)
        axis.locator_params(axis='y', nbins=6)
        for family in dict.fromkeys(point[1:3] for point in points):
            line = sorted((point.x, point.y) for point in points if point[1:4] == (*family, 'paper'))
            if len(line) > 1:
                axis.plot(*zip(*line), color=_COLORS[colors[family[0]]], alpha=0.7, gid='line')
        for index, point in enumerate(points):
            color = _COLORS[colors[point.method]]
            axis.plot(point.x, point.y, 'o', color=color, markerfacecolor=_PAGE if point.who == 'paper' else color,
                      gid=f'point {index}')
        text = io.StringIO()
        metadata = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        figure.savefig(text, format='svg', transparent=True, metadata=metadata)
    return _to_inline(text.getvalue(), f'{label} against FLOPs: {table.title}', points), list(colors.items())


def _to_inline(svg: str, title: str, points: list[_Point]) -> str:
    """Return SVG for a page: without namespaces and fonts, in the page's colours, each marker with its numbers."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition('}')[2]
        attributes = {key.rpartition('}')[2]: ' '.join(value.split()) for key, value in element.attrib.items()}
        style = re.sub(r'font[^;]*;', '', attributes.get('style', ''))
        attributes['style'] = re.sub(r'#[0-9a-f]{6}', lambda color: _VARIABLES.get(color[0], color[0]), style)
        if element.tag == 'g':
            kind, _, index = attributes.pop('id', '').partition(' ')
            attributes['class'] = 'line' if kind == 'line' else ''
            if kind == 'point':
                point = points[int(index)]
                attributes['class'] = point.who
                name = ElementTree.SubElement(element, 'title')
                name.text = f'{point.row}, {point.who}: {point.y:.1f} % at {point.x:.4g} G'
        element.attrib = {key: value for key, value in attributes.items() if value}
    root.attrib.update({'role': 'img', 'aria-label': title})
    return ElementTree.tostring(root, encoding='unicode')


def _points(row: Row, metric: str) -> list[_Point]:
    value, cost = row.value(metric), row.value('flops')
    method, _, size = row.name.partition(', ')
    # PeLK-T, PeLK-B-101 and RepLKNet-31B are of PeLK and RepLKNet; names of configs stay.
    method = re.sub(r'-(\d*[TSB])(-\d+)?$', '', method)
    ours = cost.paper if cost.mean is None else cost.mean
    places = (('paper', cost.paper, value.paper), ('ours', ours, value.mean))
    return [_Point(row.name, method, size, who, x, y) for who, x, y in places if x is not None and y is not None]


def plot_panels(table: Table, ours: str) -> Figure:
    """Plot the rows of a sweep: a panel for each metric and each of the paper and us, as their scales differ."""
    names = [row.name for row in table.rows]
    panels = [(name, column) for name in table.quantities for column in ('paper', 'ours')]
    size = (0.08 * max(map(len, names)) + 2.5 * len(panels), 1.2 + 0.4 * len(names))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, column) in zip(axes, panels):
        values = [row.cells(name)[column][1] for row in table.rows]
        points = [(value, position) for position, value in enumerate(values) if value is not None]
        axis.plot(*zip(*points) if points else ((), ()), 'o', color=COLORS[column == 'ours'])
        for value, position in points:
            axis.annotate(f'{value:.1f}', (value, position), xytext=(0, 5), textcoords='offset points', ha='center')
        title = f'{METRICS[name].name}, {ours if column == "ours" else column}'
        axis.set_title(title if points else f'{title}: none')
        axis.set_xlabel('%')
        axis.margins(x=0.25)
        axis.grid(axis='y', alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.8)
    return figure
