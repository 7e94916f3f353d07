"""The mIoU that larger kernels gain and the parameters that they cost, dense and as stripes (PeLK, Fig. 2)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from pelk_mm.engine.launch import read_config

from ..analysis.figures import draw_curves
from ..analysis.kernel_scaling import form_labels, taps_per_channel
from .catalogue import Entry, read_catalogue
from .commands import command_of
from .runs import Run

TABLE = Path('configs/ablations/fig2_kernel_size')
FORMS = ('dense', 'stripe')


@dataclass(frozen=True)
class Point:
    """Finished runs of one form and size.

    Attributes:
        form (str): ``'dense'`` or ``'stripe'``.
        kernel_size (int): K of the first stage.
        mious (tuple[float, ...]): The mIoU of each run in per cent.
    """

    form: str
    kernel_size: int
    mious: tuple[float, ...]

    @property
    def miou(self) -> float:
        """The mean over the runs."""
        return statistics.mean(self.mious)


def parameter_multiples(kernel_sizes: Sequence[int], stripe_width: int = 5) -> dict[str, list[float]]:
    """Return the multiples of the parameters that a depthwise kernel of the first size stores.

    Args:
        kernel_sizes (Sequence[int]): The K, odd, at least ``stripe_width``.
        stripe_width (int): N of the two stripes, K x N and N x K. Defaults to 5.

    Returns:
        dict[str, list[float]]: For ``'dense'`` and ``'stripe'`` one number for each size.

    Raises:
        ValueError: If a size is not allowed.
    """
    counts = [taps_per_channel(size, center=1, stripe_width=stripe_width) for size in kernel_sizes]
    return {form: [count[form] / counts[0][form] for count in counts] for form in FORMS}


def find_points(runs: Sequence[Run], root: Path) -> tuple[list[Point], list[str]]:
    """Find the runs of Fig. 2's segmentors, and of other ablations with the same config (Table 1 has those of 51).

    Args:
        runs (Sequence[Run]): From :func:`~pelk_mm.reports.find_runs`.
        root (Path): The repository.

    Returns:
        tuple[list[Point], list[str]]: The points, by form and size, of the finished runs; and remarks: which runs are
        not finished, and which have other settings than their config.
    """
    known = {entry.name: entry for entry in read_catalogue(root)[0]}
    models = _models(root, known.values())
    mious: dict[tuple[str, int], list[float]] = {}
    remarks = []
    for run in runs:
        if run.name not in models:
            continue
        if not run.is_finished or 'miou' not in run.metrics:
            remarks.append(f'{run.folder} is not finished and left out')
            continue
        mious.setdefault(models[run.name], []).append(run.metrics['miou'])
        changed = command_of(run, known[run.name], root)[1]
        if changed != []:
            remarks.append(f'{run.folder} differs from its config: {", ".join(changed or ["in many settings"])}')
    return [Point(*model, tuple(mious[model])) for model in sorted(mious)], remarks


def gains(points: Sequence[Point], base: int) -> dict[str, dict[int, float]]:
    """Return the mIoU of each size less that of ``base`` in the same form.

    Args:
        points (Sequence[Point]): From :func:`find_points`.
        base (int): The size to compare with.

    Returns:
        dict[str, dict[int, float]]: By form and size, in points of mIoU. Forms without a run of ``base`` are missing.
    """
    bases = {point.form: point.miou for point in points if point.kernel_size == base}
    return {
        form: {point.kernel_size: point.miou - miou
               for point in points if point.form == form}
        for form, miou in bases.items()
    }


def draw_gain(kernel_sizes: Sequence[int],
              gained: Mapping[str, Mapping[int, float]] | None = None,
              stripe_width: int = 5) -> Figure:
    """Draw the gain in mIoU, where there are runs, and the multiple of parameters against the kernel's size.

    Args:
        kernel_sizes (Sequence[int]): The K; multiples are those of the first.
        gained (Mapping, optional): From :func:`gains`. Without any the figure has the multiples only.
        stripe_width (int): As for :func:`parameter_multiples`.

    Returns:
        Figure: With one panel or two.
    """
    figure = Figure(figsize=(10 if gained else 5.5, 4), layout=ConstrainedLayoutEngine(w_pad=0.12))
    *first, cost = figure.subplots(1, 2 if gained else 1, squeeze=False)[0]
    labels, last = form_labels(stripe_width), kernel_sizes[-1]
    multiples = parameter_multiples(kernel_sizes, stripe_width)
    draw_curves(cost, {labels[form]: (kernel_sizes, multiples[form]) for form in FORMS})
    for form in FORMS:
        multiple = multiples[form][-1]
        cost.annotate(f'{multiple:.1f}x', (last, multiple), xytext=(0, 6), textcoords='offset points', ha='center')
    cost.set_ylabel(f'convolutional parameters, multiple of K = {kernel_sizes[0]}')
    cost.set_ylim(0, 1.1 * max(values[-1] for values in multiples.values()))
    for axis in first:
        points = {labels[form]: sorted((gained or {}).get(form, {}).items()) for form in FORMS}
        draw_curves(axis, {label: tuple(zip(*line)) or ((), ()) for label, line in points.items()}, markersize=5)
        axis.axhline(0, color='0.7', linewidth=0.8, zorder=0)
        axis.set_ylabel(f'mIoU gained over K = {kernel_sizes[0]}, points')
    for axis in (*first, cost):
        axis.set_xlim(cost.get_xlim())
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    cost.legend(loc='upper left')
    return figure


def _models(root: Path, catalogue: Iterable[Entry]) -> dict[str, tuple[str, int]]:
    """Form and K of the first stage, by name of the config."""
    models: dict[str, tuple[str, int]] = {}
    table = []
    segmentors = [entry for entry in catalogue if entry.data == 'ADE20K' and entry.folder.startswith('ablations')]
    for entry in sorted(segmentors, key=lambda entry: entry.path.parent != TABLE):
        config = read_config(str(root / entry.path)).to_dict()
        if entry.path.parent == TABLE:
            table.append((config, (entry.labels['Form'], int(entry.labels['Kernel'].partition('x')[0]))))
        models.update((entry.name, model) for same, model in table if same == config)
    return models
