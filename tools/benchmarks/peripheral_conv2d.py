"""Time the CPU backends of the peripheral convolution against F.conv2d with the expanded kernel, FFT and a copy.

Over the paper's shapes (four stages, 224 and 512 pixel inputs, 51x51 and 101x101 kernels, batch 1 and 8) and over
kernel sizes 7 ... 151 on one map. Each method is checked against fp64 before it is timed, all methods of a shape in one
run. Each is compared with the automatic choice on input of the same layout. F.conv2d is much faster on channels-last
input, which makes that the rival; operator_versions.py compares two versions of this package.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from time import perf_counter

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.testing.benchmark import environment, rotating, save_report, time_paired
from pelk_mm.testing.operator_methods import CHANNELS, KERNELS, MAPS, dense_conv2d, draw, fft_conv2d, timed
from pelk_mm.testing.tolerances import RELATIVE_ERROR, relative_error

CURVE = (7, 13, 21, 31, 41, 51, 71, 101, 121, 151)
CURVE_SHAPE = (1, 46, 128, 128)
# Kernel sizes and their centres, the first of each pair being what the second is compared with.
SCALING = (((51, 5), (101, 7)), ((31, 5), (151, 5)))
DENSE = ('conv2d channels-last', 'conv2d')
OURS = ('auto channels-last', 'auto')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--dtype', default='float32', choices=['float64', 'float32', 'bfloat16', 'float16'])
    parser.add_argument('--backward', action='store_true', help='forward and backward instead of only forward')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--stages', type=int, nargs='+', default=[1, 2, 3, 4])
    parser.add_argument('--seconds', type=float, default=0.5, help='time to spend on each method and shape')
    parser.add_argument('--dense-limit', type=float, default=5.0, metavar='SECONDS',
                        help='leave F.conv2d out where one call takes longer than this')
    parser.add_argument('--no-curve', action='store_true', help='skip the curve over kernel sizes')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='draw the results')
    return parser.parse_args()


def methods(x: Tensor, theta: Tensor, grid: SharingGrid) -> dict[str, Callable]:
    """Name -> function of (x, theta); x as planes, except for the methods that say otherwise."""
    reasons = available_backends(x, theta, grid)
    able = [name for name, reason in reasons.items() if reason is None and name != 'reference']
    runs = {name: partial(peripheral_conv2d, grid=grid, backend=name) for name in able}
    runs = dict.fromkeys(OURS, partial(peripheral_conv2d, grid=grid, backend='auto')) | runs
    runs['fft'] = partial(fft_conv2d, grid=grid)
    runs['copy'] = lambda x, theta: x.clone()
    runs.update(dict.fromkeys(DENSE, partial(dense_conv2d, grid=grid)))
    return runs


def measure(shape: tuple[int, int, int, int], grid: SharingGrid, args: argparse.Namespace) -> dict:
    """Measure median seconds and spread of each method that is right and within the limit, and its relative error."""
    inputs = rotating(partial(_draw, shape, grid, args), 'cpu')
    x, theta, _ = inputs[0]
    # fp64 boxes, themselves tested against the dense definition, which would take minutes here in fp64.
    right = peripheral_conv2d(x.detach().double(), theta.detach().double(), grid, backend='box_sums')
    runs, errors, result = methods(x, theta, grid), {}, {}
    for name in list(runs):
        if name in DENSE and dense_seconds(name, shape, grid, args) > args.dense_limit:
            result[name] = None
            del runs[name]
        elif name != 'copy':
            with torch.no_grad():
                errors[name] = relative_error(runs[name](_layout(name, x), theta), right)
            # FFT and dense paths have rounding of their own; what is checked is that they compute the same thing.
            bound = RELATIVE_ERROR[x.dtype] * (1 if name in available_backends(x, theta, grid) else 100)
            if not errors[name] <= bound:
                raise RuntimeError(f'{name} is wrong for {shape}, {list(grid.half)}: relative error {errors[name]:.1e}')
    # By layout: planes, and channels last for the methods of that name.
    layouts = [(tensors, tuple(_layout(DENSE[0], t) if t.ndim == 4 else t for t in tensors)) for tensors in inputs]
    calls = {name: timed(run, args.backward) for name, run in runs.items()}
    for is_dense in (False, True):
        group = {name: lambda sets, name=name: calls[name](*sets[_is_channels_last(name)])
                 for name in calls if (name in DENSE) == is_dense}
        if not group:
            continue
        with torch.set_grad_enabled(args.backward):
            times = time_paired(group, layouts, 'cpu', seconds=args.seconds, min_rounds=3 if is_dense else 9)
        result.update({name: dict(vars(time), error=errors.get(name)) for name, time in times.items()})
    return result


def measure_scaling(args: argparse.Namespace) -> list[dict]:
    """Measure how the time of the automatic choice grows with the kernel, on one map, all kernels in one run."""
    runs = {}
    for kernel in (kernel for pair in SCALING for kernel in pair):
        grid = SharingGrid.from_kernel_size(*kernel)
        run, theta = timed(partial(peripheral_conv2d, grid=grid), args.backward), _draw(CURVE_SHAPE, grid, args)[1]
        runs[kernel] = lambda inputs, run=run, theta=theta: run(inputs[0], theta, inputs[2])
    with torch.set_grad_enabled(args.backward):
        inputs = rotating(partial(_draw, CURVE_SHAPE, SharingGrid.dense(1), args), 'cpu')
        times = time_paired(runs, inputs, 'cpu', seconds=4 * args.seconds)
    return [dict(kernel_sizes=(small[0], large[0]), centers=(small[1], large[1]),
                 medians=(times[small].median, times[large].median)) for small, large in SCALING]


_dense_rates: dict[str, float] = {}


def dense_seconds(name: str, shape: tuple[int, ...], grid: SharingGrid, args: argparse.Namespace) -> float:
    """Estimate of one dense call, from the rate (multiply-adds a second) of eight channels of a call of that kind."""
    work = math.prod(shape) * grid.kernel_size**2
    if work < 1e8:
        return 0.0
    key = f'{name} {grid.kernel_size} {shape[2:]}'
    if key not in _dense_rates:
        small = (1, 8, *shape[2:])
        x, *others = _draw(small, grid, args)
        start = perf_counter()
        timed(partial(dense_conv2d, grid=grid), args.backward)(_layout(name, x), *others)
        _dense_rates[key] = math.prod(small) * grid.kernel_size**2 / (perf_counter() - start)
    return work / _dense_rates[key]


def _draw(shape: tuple[int, ...], grid: SharingGrid, args: argparse.Namespace, seed: int = 0) -> tuple[Tensor, ...]:
    return draw(shape, grid, getattr(torch, args.dtype), 'cpu', args.backward, seed)


def _is_channels_last(name: str) -> bool:
    return name.endswith('channels-last')


def _layout(name: str, x: Tensor) -> Tensor:
    if not _is_channels_last(name):
        return x
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(x.requires_grad)


def ratio(row: dict, name: str) -> float | None:
    """Return how many times slower than the automatic choice on the same layout."""
    ours = row['times'][OURS[0] if _is_channels_last(name) else OURS[1]]
    return row['times'][name]['median'] / ours['median'] if row['times'].get(name) else None


def summary(rows: list[dict]) -> dict:
    """Return geometric means over the shapes of stages 1 to 3, and the extremes."""
    result = {}
    others = {name for row in rows for name in row['times']} - {*OURS, *DENSE}
    for name in (*DENSE, *sorted(others)):
        ratios = [r for row in rows if row['stage'] <= 3 and (r := ratio(row, name))]
        if ratios:
            result[name] = dict(
                geometric_mean=geometric_mean(ratios), lowest=min(ratios), highest=max(ratios), shapes=len(ratios))
    return result


def show(console: Console, title: str, rows: list[dict]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row['times']))
    caption = 'milliseconds, median; in brackets: times the auto choice on the same layout'
    table = Table('N, C, map', 'K', *names, title=title, caption=caption)
    for row in rows:
        batch, channels, height, width = row['shape']
        cells = []
        for name in names:
            time = row['times'].get(name)
            cells.append('-' if time is None else f'{1e3 * time["median"]:.3g} ({ratio(row, name):.3g})')
        table.add_row(f'{batch}, {channels}, {height}x{width}', str(row['kernel_size']), *cells)
    console.print(table)


def plot(file: Path, results: dict) -> None:
    figure = Figure(figsize=(14, 4.6), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    rows = [row for row in results['shapes'] if row['shape'][0] == results['shapes'][0]['shape'][0]]
    names = [name for name in (*OURS, 'fft', *DENSE) if any(row['times'].get(name) for row in rows)]
    labels = {'auto': 'peripheral_conv2d', 'fft': 'FFT', 'conv2d': 'F.conv2d'}
    labels |= {f'{name} channels-last': f'{labels[name]} channels-last' for name in ('auto', 'conv2d')}
    for i, name in enumerate(names):
        heights = [1e3 * row['times'][name]['median'] if row['times'].get(name) else 0 for row in rows]
        places = [j + 0.8 * (i + 0.5) / len(names) - 0.4 for j in range(len(rows))]
        left.bar(places, heights, 0.8 / len(names), label=labels[name])
    ticks = [f'{row["kernel_size"]}\n{row["shape"][2]}x{row["shape"][3]}' for row in rows]
    left.set_xticks(range(len(rows)), ticks, fontsize=6.5)
    left.set(yscale='log', ylabel='milliseconds', xlabel='kernel size, map', title=f'batch {rows[0]["shape"][0]}')
    left.legend(fontsize=8)
    for name in names:
        timed = [row for row in results['curve'] if row['times'].get(name)]
        points = [(row['kernel_size'], 1e3 * row['times'][name]['median']) for row in timed]
        if points:
            right.plot(*zip(*points), marker='o', label=labels[name])
    curve_title = '{}, {} channels, {}x{} map'.format(*CURVE_SHAPE)
    right.set(yscale='log', xlabel='kernel size', ylabel='milliseconds', title=curve_title)
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(axis='y', alpha=0.3)
    what = 'forward and backward' if results['backward'] else 'forward'
    device = results['environment']['device_name']
    figure.suptitle(f'Peripheral convolution, {what}, {results["dtype"]}, {device}', fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    args = parse_args()
    console = Console()
    results = dict(environment=environment('cpu'), dtype=args.dtype, backward=args.backward, shapes=[], curve=[])
    console.print(results['environment'])
    plan = [(batch, size, center, stage) for batch in args.batches for size in MAPS for center in KERNELS
            for stage in args.stages]
    for batch, size, center, stage in track(plan, 'shapes', console=console):
        side, kernel = MAPS[size][stage - 1], KERNELS[center][stage - 1]
        shape = (batch, CHANNELS[stage - 1], side, side)
        times = measure(shape, SharingGrid.from_kernel_size(kernel, center), args)
        results['shapes'].append(dict(shape=shape, kernel_size=kernel, center=center, stage=stage, times=times))
    show(console, "the paper's shapes", results['shapes'])
    for kernel in () if args.no_curve else track(CURVE, 'curve', console=console):
        times = measure(CURVE_SHAPE, SharingGrid.from_kernel_size(kernel), args)
        results['curve'].append(dict(shape=CURVE_SHAPE, kernel_size=kernel, times=times))
    results['scaling'] = [] if args.no_curve else measure_scaling(args)
    if results['curve']:
        show(console, 'kernel size', results['curve'])
    for row in results['scaling']:
        (small, large), (fast, slow) = row['kernel_sizes'], row['medians']
        console.print(f'K = {large} takes {slow / fast:.2f} times as long as K = {small} ({1e3 * slow:.3g} and '
                      f'{1e3 * fast:.3g} ms, timed in turn)')
    results['summary'] = summary(results['shapes'])
    for name, values in results['summary'].items():
        console.print(f'{name}: {values["geometric_mean"]:.3g} times the time of the automatic choice on the same '
                      f'layout (geometric mean of {values["shapes"]} shapes of stages 1 to 3; {values["lowest"]:.3g} '
                      f'... {values["highest"]:.3g})')
    if args.json:
        save_report(results, args.json)
    if args.plot:
        plot(args.plot, results)


if __name__ == '__main__':
    main()
