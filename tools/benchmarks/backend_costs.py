"""Measure and fit the constants of the cost model behind ``backend='auto'`` on the CPU, and check its choices.

Paste the printed table into ``pelk_mm/ops/peripheral_conv2d/costs.py``.
"""

import argparse
import itertools
import pprint

import numpy as np
import torch
from scipy.optimize import nnls
from tqdm import tqdm

from pelk_mm.ops import SharingGrid
from pelk_mm.ops.peripheral_conv2d import costs
from pelk_mm.ops.peripheral_conv2d.backends import BACKENDS
from pelk_mm.testing.benchmark import time_paired

FUNCTIONS = ('forward', 'theta_grad')
KERNELS = (3, 5, 7, 9, 11, 13, 17, 21, 31, 51)
SHAPES = ((1, 374, 7, 7), (8, 374, 7, 7), (8, 64, 14, 14), (1, 64, 28, 28), (1, 48, 64, 64), (1, 46, 128, 128))


def measure(seconds: float, threads: int) -> tuple[dict[tuple[str, str, str], list], list[tuple]]:
    """Measure (backend, function, regime) -> [(regressors, nanoseconds)]; return also the calls, for the check."""
    results, calls = {}, []
    layouts = (torch.contiguous_format, torch.channels_last)
    torch.set_num_threads(threads)
    plan = list(itertools.product(KERNELS, SHAPES, layouts))
    for kernel, shape, layout in tqdm(plan, f'{threads} threads'):
        grids = {SharingGrid.from_kernel_size(kernel, min(kernel, 5))}
        if kernel <= 13:
            grids.add(SharingGrid.dense(kernel))
        x = torch.randn(shape).to(memory_format=layout)
        for grid in grids:
            theta = torch.randn(shape[1], grid.num_cells, grid.num_cells)
            for function in FUNCTIONS:
                runs = {}
                for name in (name for name, backend in BACKENDS.items() if backend.why_not(x, grid) is None):
                    run = getattr(BACKENDS[name], function)
                    if function == 'forward':
                        runs[name] = lambda x, run=run, theta=theta, grid=grid: run(x, theta, None, grid)
                    elif name != 'reference' or kernel <= 21:
                        # The dense gradient of larger kernels takes seconds, and never wins.
                        runs[name] = lambda x, run=run, grid=grid: run(x, x, grid)
                times = {
                    name: 1e9 * timing.low
                    for name, timing in time_paired(runs, [x], 'cpu', seconds=seconds, min_rounds=3).items()
                }
                calls.append((threads, function, x, grid, times))
                if kernel <= costs.ALWAYS_DENSE:
                    continue
                for name, nanoseconds in times.items():
                    key = (name, function, costs.regime(name, costs.is_channels_last(x), grid))
                    row = (costs.regressors(name, function, shape, threads, grid), nanoseconds)
                    results.setdefault(key, []).append(row)
    return results, calls


def fit(rows: list[tuple]) -> tuple[float, ...]:
    """Fit non-negative constants that minimise the relative error."""
    regressors, times = (np.array(column, dtype=float) for column in zip(*rows))
    return tuple(float(f'{value:.3g}') for value in nnls(regressors / times[:, None], np.ones_like(times))[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=0.1, help='time to spend on each measurement')
    parser.add_argument(
        '--threads', type=int, nargs='+', default=sorted({1, torch.get_num_threads()}), help='numbers of CPU threads')
    parser.add_argument('--check', action='store_true', help='measure, but check the present table instead of fitting')
    args = parser.parse_args()
    results, calls = {}, []
    for threads in args.threads:
        more, called = measure(args.seconds, threads)
        calls += called
        for key, rows in more.items():
            results.setdefault(key, []).extend(rows)
    if not args.check:
        costs.CPU_COSTS.clear()
        costs.CPU_COSTS.update({key: fit(rows) for key, rows in results.items()})
        for layout in ('planes', 'channels_last'):
            # Where the dense gradient was too slow to be timed it is surely no faster than where it was.
            unit = max(cost[-1] for key, cost in costs.CPU_COSTS.items() if key[:2] == ('reference', 'theta_grad'))
            costs.CPU_COSTS.setdefault(('reference', 'theta_grad', f'{layout}, large'), (0.0, 0.0, 0.0, 0.0, unit))
        pprint.pprint(costs.CPU_COSTS, width=100)
    for left_out in ((), ('native', )):
        lost = 0
        for threads, function, x, grid, times in calls:
            torch.set_num_threads(threads)
            names = [name for name in times if name not in left_out]
            choice = costs.cheapest(tuple(names), function, x, grid)
            dense = times.get('reference', float('inf'))
            if times[choice] > 1.1 * dense:
                lost += 1
                print(f'{threads} threads, {function} {tuple(x.shape)} {list(grid.half)} strides {x.stride()}: '
                      f'{choice} takes {times[choice] / dense:.2f} times the dense time')
        among = 'without native' if left_out else 'among all'
        print(f'{among}: {lost} of {len(calls)} choices over 1.1 times the dense time')


if __name__ == '__main__':
    main()
