"""Time the peripheral convolution of two versions of this package in turn, and how many times as fast the new one is.

    python tools/benchmarks/operator_versions.py 1fdf840~1         # a commit against the working tree
    python tools/benchmarks/operator_versions.py main --backward --threads 1 2 --json work_dirs/versions.json
    python tools/benchmarks/operator_versions.py main --networks PeLK-T PeLK-T-w1

Stages 1 to 3 of PeLK-T at 224 pixels, channels-last input first. Each version has a process of its own, of which one
runs at a time; every round times both, in changing order. Compared are the rounds: the median of their ratios, with
quartiles. Beside them, F.conv2d with the expanded kernel on the same input. With --networks, complete classifiers
instead: the deployed form, or with --backward the training form and the gradients of its weights.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from statistics import geometric_mean, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = dict(channels_last=torch.channels_last, planes=torch.contiguous_format)
# A round is long against the timer's resolution; a dense gradient takes seconds.
ROUND_SECONDS, DENSE_ROUNDS = 0.02, 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('old', help='a commit, or a folder with a source tree')
    parser.add_argument('--new', default=str(ROOT), help='the same, by default this tree')
    parser.add_argument('--dtype', default='float32', choices=['float64', 'float32', 'bfloat16', 'float16'])
    parser.add_argument('--backward', action='store_true', help='forward and backward instead of only forward')
    parser.add_argument('--layouts', nargs='+', default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--stages', type=int, nargs='+', default=[1, 2, 3], choices=[1, 2, 3, 4])
    parser.add_argument('--networks', nargs='+', default=[], metavar='NAME',
                        help='of pelk_mm.testing.networks, or archs of PeLK; --stages and --centers do not count then')
    parser.add_argument('--images', type=int, nargs='+', default=[224], choices=[224, 512], help='side in pixels')
    parser.add_argument('--centers', type=int, nargs='+', default=[5], choices=[5, 7],
                        help='of the kernels: 5 for 51x51, 7 for 101x101')
    parser.add_argument('--threads', type=int, nargs='+', default=[torch.get_num_threads()])
    parser.add_argument('--seconds', type=float, default=2.0, help='for all rounds of a shape')
    parser.add_argument('--no-dense', action='store_true', help='leave F.conv2d out')
    parser.add_argument('--flags', default='', help='for the C++ compiler, such as --flags=-mno-avx512f for AVX2 code')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results')
    return parser.parse_args()


class Version:
    """A process that imports the package from a source tree and times calls on request.

    Args:
        tree (Path): The source tree.
        flags (str): For the C++ compiler, beside the usual ones.
    """

    def __init__(self, tree: Path, flags: str) -> None:
        environment = dict(os.environ, PYTHONPATH=str(tree), PELK_MM_CXXFLAGS=flags)
        self._process = subprocess.Popen([sys.executable, __file__, '--serve'], env=environment, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request: Any) -> Any:
        """Pass a request to ``serve`` and return the answer."""
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f'a version ended with code {self._process.wait()} when asked for {request}')
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Answer requests, a line of JSON each: prepare a case, save its results, or time some calls."""
    runs: dict[str, Callable] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = None
        if 'case' in request:
            torch.set_num_threads(request['case']['threads'])
            if 'network' in request['case']:
                runs = dict(ours=prepare_network(request['case']))
            else:
                runs = {name: prepare(request['case'], name) for name in ('ours', 'dense')}
        elif 'save' in request:
            torch.save(runs['ours'](), request['save'])
        else:
            run = runs[request['method']]
            start = time.perf_counter()
            for _ in range(request['calls']):
                run()
            answer = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


def prepare(case: dict, method: str) -> Callable[[], tuple[Tensor, ...]]:
    """Return the call to time, which gives the output, or the gradients of x and theta."""
    from pelk_mm.ops import SharingGrid, expand_kernel, peripheral_conv2d
    grid = SharingGrid.from_kernel_size(case['kernel_size'], case['center'])
    generator = torch.Generator().manual_seed(0)
    dtype, layout = getattr(torch, case['dtype']), LAYOUTS[case['layout']]
    x, grad = (torch.randn(case['shape'], generator=generator).to(dtype).contiguous(memory_format=layout) for _ in 'xy')
    theta = torch.randn(x.shape[1], grid.num_cells, grid.num_cells, generator=generator) / grid.kernel_size
    theta = theta.to(dtype).requires_grad_(case['backward'])
    x.requires_grad_(case['backward'])

    def dense(x: Tensor, theta: Tensor) -> Tensor:
        kernel = expand_kernel(theta, grid).unsqueeze(1)
        return F.conv2d(x, kernel, padding=grid.kernel_size // 2, groups=x.shape[1])

    run = dense if method == 'dense' else partial(peripheral_conv2d, grid=grid, backend='native')
    if case['backward']:
        return lambda: torch.autograd.grad(run(x, theta), (x, theta), grad)
    return lambda: (run(x, theta), )


def prepare_network(case: dict) -> Callable[[], tuple[Tensor, ...]]:
    """Return the call to time, which gives the scores, or the gradients of the weights."""
    from pelk_mm.testing.networks import build_network, find_network
    torch.manual_seed(0)
    dtype, layout = getattr(torch, case['dtype']), LAYOUTS[case['layout']]
    model = build_network(find_network(case['network']), tuple(case['shape'][2:]), deploy=not case['backward'])
    model = model.to(dtype, memory_format=layout)
    x = torch.randn(case['shape']).to(dtype).contiguous(memory_format=layout)

    def gradients() -> tuple[Tensor, ...]:
        # Of drop path.
        torch.manual_seed(1)
        return torch.autograd.grad(model(x).logsumexp(1).mean(), tuple(model.parameters()))

    @torch.inference_mode()
    def scores() -> tuple[Tensor, ...]:
        return (model(x), )

    return gradients if case['backward'] else scores


@contextmanager
def source_tree(version: str) -> Iterator[Path]:
    """Provide a folder as it is; of a commit, its files in a folder that is removed afterwards."""
    if Path(version).is_dir():
        yield Path(version).resolve()
        return
    archive = subprocess.run(['git', 'archive', version, 'pelk_mm'], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise SystemExit(f'{version!r} is neither a folder nor a commit: {archive.stderr.decode().strip()}')
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter='data')
        yield Path(folder)


def difference(versions: dict[str, Version]) -> float:
    """Return the largest relative difference of the results of both, of norms."""
    with tempfile.TemporaryDirectory() as folder:
        for name, version in versions.items():
            version.ask(save=str(Path(folder, name)))
        pairs = zip(*(torch.load(Path(folder, name), weights_only=True) for name in versions))
        return max(((a.double() - b.double()).norm() / a.double().norm()).item() for a, b in pairs)


def measure(versions: dict[str, Version], case: dict, seconds: float, dense: bool) -> dict:
    """Measure median seconds of a call and their quartiles, by version, of their ratios and of F.conv2d."""
    for version in versions.values():
        version.ask(case=case)
    result: dict[str, Any] = dict(case, difference=difference(versions))
    once = min(version.ask(method='ours', calls=2) / 2 for version in versions.values())
    calls = max(1, round(ROUND_SECONDS / once))
    rounds: dict[str, list[float]] = {name: [] for name in versions}
    order, shuffle = list(versions), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds['new']) < 5:
        shuffle(order)
        for name in order:
            # The first call finds the caches of the other version.
            versions[name].ask(method='ours', calls=1)
            rounds[name].append(versions[name].ask(method='ours', calls=calls) / calls)
    rounds['ratio'] = [old / new for old, new in zip(rounds['old'], rounds['new'])]
    if dense:
        rounds['conv2d'] = [versions['new'].ask(method='dense', calls=1) for _ in range(DENSE_ROUNDS + 1)][1:]
    for name, values in rounds.items():
        low, median, high = quantiles(values, n=4, method='inclusive')
        result[name] = dict(low=low, median=median, high=high, rounds=len(values))
    return result


def cases(args: argparse.Namespace) -> Iterator[dict]:
    from pelk_mm.testing.operator_methods import CHANNELS, KERNELS, MAPS
    for threads, layout, image, batch, network in product(args.threads, args.layouts, args.images, args.batches,
                                                          args.networks):
        yield dict(threads=threads, layout=layout, shape=(batch, 3, image, image), network=network, dtype=args.dtype,
                   backward=args.backward)
    if args.networks:
        return
    for threads, layout, image, center, batch, stage in product(args.threads, args.layouts, args.images, args.centers,
                                                                args.batches, args.stages):
        side = MAPS[image][stage - 1]
        yield dict(threads=threads, layout=layout, shape=(batch, CHANNELS[stage - 1], side, side), center=center,
                   kernel_size=KERNELS[center][stage - 1], dtype=args.dtype, backward=args.backward)


def summary(rows: list[dict]) -> dict[str, float]:
    """Return geometric means of the median ratios, of all rows and by threads and layout, and the lowest."""
    groups: dict[str, list[dict]] = dict(all=rows)
    for row in rows:
        groups.setdefault(f'{row["layout"]}, {row["threads"]} threads', []).append(row)
    result = {}
    for name, members in groups.items():
        ratios = [row['ratio']['median'] for row in members]
        result |= {f'{name}: new over old': geometric_mean(ratios), f'{name}: lowest': min(ratios)}
        if all('conv2d' in row for row in members):
            result[f'{name}: new over F.conv2d'] = geometric_mean(
                row['conv2d']['median'] / row['new']['median'] for row in members)
    return result


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(ROOT))
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from pelk_mm.testing.benchmark import environment, save_report
    # The table needs more columns than are assumed for a file.
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table('N, C', 'map', 'network' if args.networks else 'K', 'layout', 'threads', 'F.conv2d', 'old', 'new',
                  'times as fast', 'quartiles', caption='milliseconds, medians')
    rows = []
    with source_tree(args.old) as old, source_tree(args.new) as new:
        versions = dict(old=Version(old, args.flags), new=Version(new, args.flags))
        for case in track([*cases(args)], console=Console(stderr=True)):
            row = measure(versions, case, args.seconds, not (args.no_dense or args.networks))
            rows.append(row)
            batch, channels, height, width = row['shape']
            times = [f'{1e3 * row[name]["median"]:.3g}' if name in row else '-' for name in ('conv2d', 'old', 'new')]
            ratio = row['ratio']
            kernel = str(row.get('network') or row['kernel_size'])
            table.add_row(f'{batch}, {channels}', f'{height}x{width}', kernel, row['layout'], str(row['threads']),
                          *times, f'{ratio["median"]:.2f}', f'{ratio["low"]:.2f} ... {ratio["high"]:.2f}')
        for version in versions.values():
            version.close()
    console.print(table)
    means = summary(rows)
    for name, value in means.items():
        console.print(f'{name}: {value:.3g}')
    console.print(f'largest difference of results: {max(row["difference"] for row in rows):.1e}')
    if args.json:
        save_report(dict(environment=environment('cpu'), old=args.old, new=args.new, flags=args.flags, rows=rows,
                         summary=means), args.json)


if __name__ == '__main__':
    serve() if sys.argv[1:] == ['--serve'] else main()
