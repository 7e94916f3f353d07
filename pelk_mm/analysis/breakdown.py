"""A figure of where a model's multiply-adds go (PeLK, Fig. 5)."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .complexity import PARTS, Complexity, Cost
from .figures import COLORS


def draw_breakdown(complexity: Complexity) -> Figure:
    """Draw the cost of the model's components and of the backbone's parts, in dense form and as executed.

    Shares are of the model in the left panel, Fig. 5(a), and of the backbone in the right one, Fig. 5(b). Bars are
    labelled with billions of operations and their share of the panel's title.
    """
    components = {name: complexity.component(name) for name in complexity.costs}
    # The text in brackets explains the table; bars have no room for it.
    parts = {PARTS[kind].partition(' (')[0]: cost for kind, cost in complexity.costs['backbone'].items()}
    panels = [{name: cost for name, cost in panel.items() if cost.macs or cost.executed}
              for panel in (components, parts)]
    figure = Figure(figsize=(11, 1.6 + 0.62 * max(map(len, panels))), layout='constrained')
    axes = figure.subplots(1, 2)
    for axis, title, panel, whole in zip(axes, ('model', 'backbone'), panels,
                                         (complexity.total, complexity.component('backbone'))):
        axis.set_title(f'{title}, shares of the {title}')
        _draw_bars(axis, panel, whole, complexity)
        # Bars of one thickness in both panels.
        axis.set_ylim(max(map(len, panels)) - 0.5, -0.5)
    height, width = complexity.shape
    figure.suptitle(f'{complexity.task}, one image of {height} x {width}')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2)
    return figure


def _draw_bars(axis: Axes, costs: dict[str, Cost], whole: Cost, complexity: Complexity) -> None:
    bars = dict(macs=f'multiply-adds in dense form, weights x {complexity.density:g}',
                executed=f'operations executed, backend {complexity.backend}')
    for index, (kind, label) in enumerate(bars.items()):
        values, total = [getattr(cost, kind) / 1e9 for cost in costs.values()], getattr(whole, kind) / 1e9
        places = [row + 0.4 * (index - 0.5) for row in range(len(costs))]
        drawn = axis.barh(places, values, 0.38, color=COLORS[index], label=label)
        labels = [f'{value:.3g} G, {100 * value / (total or 1):.3g} %' for value in values]
        axis.bar_label(drawn, labels, padding=3)
    axis.set_yticks(range(len(costs)), list(costs))
    axis.margins(x=0.4)
    axis.set_xlabel('billions')
    axis.spines[['top', 'right']].set_visible(False)
