"""Tables, goals and plot of the results of ``tools/benchmarks/networks.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from .networks import NETWORKS, find_network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL = ('PeLK-T-w1', 'ConvNeXt-T')
"""The first is to be no slower than the second; both also take turns by themselves, for more rounds."""

# Least ratio of images per second, on which kind of device, in which uses.
_RATIOS = (
    (GOAL, 1.0, ('cpu', 'cuda'), ('inference', 'training')),
    (('PeLK-T', 'SLaK-T'), 3.0, ('cuda', ), ('inference', )),
    (('PeLK-T-101', 'PeLK-T'), 0.97, ('cuda', ), ('inference', )),
)
# A backward pass takes the products of a forward pass twice.
_PASSES = dict(inference=1, training=3)


class _Setting(NamedTuple):
    use: str
    shape: tuple[int, ...]
    dtype: str


class _Results:
    """The measurements of a report by kind; those that failed are left out."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        results = [each for each in report['results'].values() if 'failed' not in each]
        self.device = report['environment']['device'].partition(':')[0]
        self.eager: dict[_Setting, dict] = {}
        self.subsets: dict[_Setting, dict] = {}
        self.compiled: list[tuple[_Setting, dict]] = []
        for each in (each for each in results if 'networks' in each):
            setting = _Setting(each['use'], tuple(each['shape']), each['dtype'])
            if each['mode'] == 'compiled':
                self.compiled.append((setting, each))
            else:
                (self.subsets if each['subset'] else self.eager)[setting] = each
        self.counts = {tuple(each['size']): each['counts'] for each in results if 'counts' in each}
        self.mixers = [each for each in results if 'mixers' in each]

    def shapes(self, use: str) -> list[tuple[int, ...]]:
        return list(dict.fromkeys(setting.shape for setting in self.eager if setting.use == use))

    def dtypes(self, use: str) -> list[str]:
        return list(dict.fromkeys(setting.dtype for setting in self.eager if setting.use == use))

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for each in self.eager.values() for name in each['networks']))

    def share_of_product(self, setting: _Setting, name: str) -> float | None:
        """Return executed multiply-adds a second over those of the matrix product that took turns."""
        result = self.eager.get(setting)
        count = self.counts.get(setting.shape[1:], {}).get(name)
        if result is None or count is None or 'median' not in result['networks'].get(name, {}):
            return None
        macs = count['executed'] * setting.shape[0] * _PASSES[setting.use]
        return macs / result['networks'][name]['median'] / result['macs_per_second']

    def ratios(self) -> Iterator[tuple[tuple[str, str], _Setting, float, float, dict, dict]]:
        """Yield names, setting, measured ratio of images per second, goal, and the result of each."""
        for names, goal, devices, uses in _RATIOS:
            for setting, each in self.eager.items():
                both = self.subsets.get(setting, each) if names == GOAL else each
                first, second = (both['networks'].get(name, {}) for name in names)
                if self.device in devices and setting.use in uses and 'median' in first and 'median' in second:
                    yield names, setting, second['median'] / first['median'], goal, first, second


def to_markdown(report: Mapping[str, Any]) -> str:
    """Return the tables of what a report of ``tools/benchmarks/networks.py`` has so far.

    Args:
        report (Mapping): ``environment`` and ``results``, as in its JSON file.

    Returns:
        str: Markdown.
    """
    found, environment = _Results(report), report['environment']
    parts = [f'{environment["device_name"]}, {environment["threads"]} threads, torch {environment["torch"]}, '
             f'commit {environment["commit"]}.']
    parts += [part for part in (_goals(found), _inference(found), _training(found), _mixers(found), _shares(found),
                                _compiled(found), _left_out(found)) if part]
    return '\n\n'.join(parts) + '\n'


def _goals(found: _Results) -> str:
    rows = [(f'{names[0]} / {names[1]}', setting.use, setting.dtype, _shape(setting.shape), f'{ratio:.3f}',
             f'{goal:g}', 'met' if ratio >= goal else '**not met**',
             f'{min(first["rounds"], second["rounds"])}', f'{first["spread"]:.1%}, {second["spread"]:.1%}')
            for names, setting, ratio, goal, first, second in found.ratios()]
    header = ('images per second', 'use', 'dtype', 'NxHxW', 'measured', 'goal', 'verdict', 'rounds', 'spreads')
    return f'### Goals\n\n{_table(header, rows)}' if rows else ''


def _inference(found: _Results) -> str:
    shapes, dtypes = found.shapes('inference'), found.dtypes('inference')
    if not shapes:
        return ''
    counts = found.counts.get(shapes[0][1:], {})
    rows = []
    for name in found.names():
        count, top1 = counts.get(name), find_network(name).top1
        about = ['-'] * 3 if count is None else [f'{count["parameters"] / 1e6:.1f}', f'{count["executed"] / 1e9:.2f}',
                                                 f'{count["mixers"] / count["executed"]:.1%}']
        rows.append((name, '-' if top1 is None else f'{top1}', *about,
                     *(_cells(found, name, [_Setting('inference', shape, dtype) for dtype in dtypes])
                       for shape in shapes)))
    header = ('network', 'top-1, published', 'parameters M', 'executed on a CPU, G', 'of these mixers',
              *(f'{_shape(shape)}: ms, {" / ".join(dtypes)}' for shape in shapes))
    return f'### Inference\n\n{_table(header, rows)}\n\n{_spread(found, "inference")}'


def _training(found: _Results) -> str:
    shapes, dtypes = found.shapes('training'), found.dtypes('training')
    rows, header = [], ['network']
    for shape in shapes:
        header += [f'{_shape(shape)}: ms a step, {" / ".join(dtypes)}', f'peak MiB, {" / ".join(dtypes)}']
    for name in found.names():
        cells = []
        for shape in shapes:
            settings = [_Setting('training', shape, dtype) for dtype in dtypes]
            cells += [_cells(found, name, settings), _cells(found, name, settings, 'peak_memory', 2**-20)]
        rows.append((name, *cells))
    return f'### Training\n\n{_table(header, rows)}\n\n{_spread(found, "training")}' if shapes else ''


def _mixers(found: _Results) -> str:
    parts = []
    for each in found.mixers:
        rows = [(name, _number(1e3 * result['median']), f'{result["share"]:.1%}', f'{result["spread"]:.1%}')
                for name, result in each['mixers'].items() if 'share' in result]
        parts.append(f'### Time of the token mixers\n\n{_shape(each["shape"])}, {each["dtype"]}: the share of the time '
                     'that ends when every token mixer passes its input on.\n\n' +
                     _table(('network', 'ms', 'mixers', 'spread'), rows))
    return '\n\n'.join(parts)


def _shares(found: _Results) -> str:
    settings = [setting for setting in found.eager if found.counts.get(setting.shape[1:])]
    rows = []
    for name in found.names():
        shares = [found.share_of_product(setting, name) for setting in settings]
        rows.append((name, *('-' if share is None else f'{share:.0%}' for share in shares)))
    rates = ['G multiply-adds a second of the product',
             *(f'{found.eager[setting]["macs_per_second"] / 1e9:.0f}' for setting in settings)]
    header = ('network', *(f'{setting.use}, {setting.dtype}, {_shape(setting.shape)}' for setting in settings))
    return '### Share of the rate of a matrix product\n\n' + _table(header, [*rows, rates]) if settings else ''


def _compiled(found: _Results) -> str:
    rows = []
    for setting, each in found.compiled:
        for name, result in each['networks'].items():
            eager = each['networks'].get(f'{name}, eager', {})
            if 'median' in result and 'median' in eager:
                rows.append((name, setting.use, setting.dtype, _shape(setting.shape), _number(1e3 * eager['median']),
                             _number(1e3 * result['median']), f'{eager["median"] / result["median"]:.2f}',
                             f'{result["first_call"]:.0f}'))
    header = ('network', 'use', 'dtype', 'NxHxW', 'ms, eager', 'ms, compiled', 'times as fast', 's to compile')
    return f'### Compiled\n\n{_table(header, rows)}' if rows else ''


def _left_out(found: _Results) -> str:
    reasons: dict[str, list[str]] = {}
    for setting, each in [*found.eager.items(), *found.compiled]:
        for name, result in each['networks'].items():
            if 'reason' in result:
                reasons.setdefault(f'{name}: {result["reason"]}', []).append(
                    f'{setting.use}, {setting.dtype}, {_shape(setting.shape)}, {each["mode"]}')
    lines = [f'- {reason} ({"; ".join(settings)})' for reason, settings in reasons.items()]
    return '### Not measured\n\n' + '\n'.join(lines) if lines else ''


def draw(report: Mapping[str, Any]) -> Figure | None:
    """Draw the published accuracy over the measured time, of inference and of training, in the first dtype and shape.

    Networks without a published accuracy are below the line.

    Returns:
        Figure | None: None if nothing was measured.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    found = _Results(report)
    panels: dict[str, _Setting] = {}
    for setting in found.eager:
        panels.setdefault(setting.use, setting)
    if not panels:
        return None
    known = [network.top1 for network in NETWORKS.values() if network.top1 is not None]
    border = min(known) - 0.25
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout='constrained')
    for axis, setting in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.values()):
        lowest = border
        for name, result in found.eager[setting]['networks'].items():
            if 'median' not in result:
                continue
            milliseconds, network = 1e3 * result['median'], find_network(name)
            # A row for each, as they have no accuracy to stand at.
            height = network.top1 or (lowest := lowest - 0.22)
            axis.plot(milliseconds, height, 'o' if network.top1 else '^',
                      color='tab:blue' if network.package else 'tab:red')
            axis.annotate(name, (milliseconds, height), xytext=(6, 0), textcoords='offset points', va='center',
                          fontsize='x-small')
        axis.set(xscale='log', xlabel=f'ms, {setting.use}, {_shape(setting.shape)}, {setting.dtype}',
                 ylim=(lowest - 0.22, max(known) + 0.3), yticks=range(ceil(border), ceil(max(known)) + 1))
        axis.margins(x=0.3)
        axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=ScalarFormatter(),
                       minor_formatter=NullFormatter())
        axis.axhline(border, color='grey', linewidth=0.5)
        axis.spines[['top', 'right']].set_visible(False)
    figure.axes[0].set_ylabel('published top-1 on ImageNet-1K, %\n(triangles: no publication)')
    figure.suptitle(f'{report["environment"]["device_name"]}; red: of this project', fontsize='small')
    return figure


def _cells(found: _Results, name: str, settings: Iterable[_Setting], key: str = 'median', scale: float = 1e3) -> str:
    values = [found.eager.get(setting, {}).get('networks', {}).get(name, {}).get(key) for setting in settings]
    return ' / '.join('-' if value is None else _number(value * scale) for value in values)


def _spread(found: _Results, use: str) -> str:
    measured = [result for setting, each in found.eager.items() if setting.use == use
                for result in each['networks'].values() if 'median' in result]
    repeated = [result for result in measured if result['rounds'] > 1]
    once = len(measured) - len(repeated)
    if not repeated:
        return f'Timed once: all {once}.'
    rounds = [result['rounds'] for result in repeated]
    return (f'Medians of {min(rounds)} to {max(rounds)} rounds, interquartile range at most '
            f'{max(result["spread"] for result in repeated):.1%}; {once} of {len(measured)} timed once.')


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in (header, ['---'] * len(header), *rows))


def _shape(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))


def _number(value: float) -> str:
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'
