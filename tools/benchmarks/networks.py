"""Complete networks beside their peers on a CPU or, as step 3 of gpu.sh, on a GPU. See docs/benchmarks/networks.md.

All networks of a setting take turns, with a square matrix product among them, so that other work of the machine hits
all alike. Inference is of the deployed form in the named dtype; training is forward, backward and AdamW in fp32, or
under bf16 autocast. Each network runs in the memory format, planes or channels-last, in which it is faster, which is
measured first. Compiled networks come last, as compilation takes most of the time.

Ours need torch only; peers are timm's and mmpretrain's, where these are installed, and multiply-adds are counted where
MMEngine is. Tables go beside the results as Markdown, and a plot, if there is matplotlib.
"""

import argparse
import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelk_mm.layers import PeripheralConv2d
from pelk_mm.nets import PeLK
from pelk_mm.testing.benchmark import Timing, peak_memory, rotating, time_paired
from pelk_mm.testing.measurements import Measurements, open_measurements, step_parser
from pelk_mm.testing.network_report import GOAL, draw, to_markdown
from pelk_mm.testing.networks import (
    NETWORKS,
    SMALL_KERNELS,
    build_network,
    count_multiply_adds,
    find_network,
    without_mixers,
)

DTYPES = dict(fp32=torch.float32, tf32=torch.float32, bf16=torch.bfloat16)
PRODUCT = 'matrix product'
FORMATS = dict(planes=torch.contiguous_format, channels_last=torch.channels_last)
USES = ('inference', 'training')
PARTS = ('counts', *USES, 'mixers', 'compiled')
# Of a measurement: use, dtype, shape, eager or compiled, names.
Call = tuple[str, str, tuple[int, ...], str, list[str]]
# By kind of device. ``formats`` is the batch with which memory formats are compared; compiled are the first shapes.
DEFAULTS: dict[str, dict[str, Any]] = dict(
    cpu=dict(json=Path('work_dirs/networks/cpu.json'), limit=1680.0, dtypes=['fp32', 'bf16'],
             inference=[(1, 224, 224), (8, 224, 224), (1, 512, 512), (1, 800, 1280)], training=[(4, 224, 224)],
             compiled=[('inference', 'fp32'), ('inference', 'bf16')], formats=1, side=1024,
             round_limit=60.0),
    cuda=dict(json=Path('docs/benchmarks/gpu/networks.json'), limit=440.0, dtypes=['fp32', 'bf16', 'tf32'],
              inference=[(128, 224, 224)], training=[(128, 224, 224)],
              compiled=[('inference', 'bf16'), ('training', 'bf16'), ('inference', 'fp32'), ('training', 'fp32')],
              formats=32, side=8192, round_limit=20.0))
TINY = dict(dtypes=['fp32'], inference=[(2, 64, 64)], training=[(2, 64, 64)], formats=2, side=64)


def shape_of(text: str) -> tuple[int, int, int]:
    """Read ``8x224x224``."""
    sides = text.split('x')
    if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f'expected images, height and width such as 8x224x224, got {text!r}')
    batch, height, width = map(int, sides)
    return batch, height, width


def parse_args() -> argparse.Namespace:
    parser = step_parser(__doc__, 'networks', on_cpu=True)
    parser.add_argument('--models', nargs='+', choices=[*NETWORKS, *PeLK.arch_settings], default=list(NETWORKS),
                        metavar='NAME', help=f'of {", ".join(NETWORKS)}, or archs of PeLK')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='some of the measurements')
    parser.add_argument('--dtypes', nargs='+', choices=list(DTYPES))
    parser.add_argument('--inference', nargs='+', type=shape_of, metavar='NxHxW', help='images, height, width of calls')
    parser.add_argument('--training', nargs='+', type=shape_of, metavar='NxHxW', help='the same of training steps')
    parser.add_argument('--backends', nargs='+', default=[], metavar='BACKEND',
                        help="beside the mixers' share also time the PeLKs with these backends")
    parser.add_argument('--seconds', type=float, default=1.5, help='time to spend on each network in each setting')
    parser.add_argument('--round-limit', type=float, metavar='SECONDS',
                        help='begin no further round of a setting after this time')
    parser.add_argument('--slow', type=float, default=5.0, metavar='SECONDS', help='time once what takes longer')
    parser.add_argument('--call-limit', type=float, default=45.0, metavar='SECONDS', help='leave out what takes longer')
    parser.set_defaults(json=None, limit=None)
    args = parser.parse_args()
    defaults = {**DEFAULTS.get(torch.device(args.device).type, DEFAULTS['cuda']), **(TINY if args.tiny else {})}
    vars(args).update({name: value for name, value in defaults.items() if getattr(args, name, None) is None})
    if torch.device(args.device).type == 'cpu' and 'tf32' in args.dtypes:
        parser.error('--dtypes tf32 needs a GPU')
    return args


def set_tf32(dtype: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == 'tf32'


def make_call(model: nn.Module, use: str, dtype: str, memory: str, shape: tuple[int, ...], args: argparse.Namespace,
              compiled: bool = False) -> Callable[[int], Any]:
    """Move a model to its place, and return its call, or training step, on one of some input sets."""
    place: dict[str, Any] = dict(device=args.device, memory_format=FORMATS[memory])
    if use == 'inference':
        place['dtype'] = DTYPES[dtype]
    model.to(**place)
    forward = torch.compile(model) if compiled else model
    batch, height, width = shape
    images = rotating(lambda seed: torch.randn(batch, 3, height, width).to(**place), args.device, limit=4)

    def infer(index: int) -> Tensor:
        with torch.inference_mode():
            return forward(images[index % len(images)])

    if use == 'inference':
        return infer
    labels = torch.randint(1000, (batch, ), device=args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    precision = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=dtype == 'bf16')

    def step(index: int) -> None:
        with precision:
            loss = F.cross_entropy(forward(images[index % len(images)]).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def make_product(dtype: str, args: argparse.Namespace) -> Callable[[int], Any]:
    """Make the call of a product of square matrices, whose rate is that of the machine."""
    one, other = (torch.randn(args.side, args.side, device=args.device).to(DTYPES[dtype]) for _ in range(2))
    return lambda index: one @ other


def stopwatch(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Return the seconds of a call and its result."""
    synchronize = torch.cuda.synchronize if torch.device(device).type == 'cuda' else lambda: None
    synchronize()
    start = perf_counter()
    result = call()
    synchronize()
    return perf_counter() - start, result


def warm_seconds(call: Callable[[], Any], args: argparse.Namespace) -> float:
    """Return the seconds of the second call; of the first on a CPU if that is long, as nothing is tuned there."""
    first, _ = stopwatch(call, args.device)
    if first > args.slow and torch.device(args.device).type == 'cpu':
        return first
    return stopwatch(call, args.device)[0]


def reason_of(error: Exception) -> dict[str, str]:
    return dict(reason=f'not measured: {type(error).__name__}: {str(error)[:300]}')


def formats(use: str, dtype: str, args: argparse.Namespace) -> dict[str, dict]:
    """Name -> seconds of a call on few images in each memory format, in turn unless it is slow."""
    set_tf32(dtype)
    # Builds the operator's code.
    small = build_network(find_network('PeLK-T-w1'), (64, 64), use == 'inference', True)
    make_call(small, use, dtype, 'planes', (2, 64, 64), args)(0)
    shape = (args.formats, *getattr(args, use)[0][1:])
    result: dict[str, dict] = {}
    for name in args.models:
        try:
            calls = {memory: make_call(build_network(find_network(name), shape[1:], use == 'inference', args.tiny), use,
                                       dtype, memory, shape, args) for memory in FORMATS}
            result[name] = {memory: warm_seconds(partial(call, 0), args) for memory, call in calls.items()}
            if max(result[name].values()) < args.slow:
                times = time_paired(calls, range(4), args.device, seconds=args.seconds, limit=4 * args.seconds,
                                    hide_launches=False)
                result[name] = {memory: time.median for memory, time in times.items()}
        except Exception as error:
            result[name] = reason_of(error)
    return dict(shape=shape, seconds=result)


def in_turn(use: str, dtype: str, shape: tuple[int, ...], mode: str, names: list[str], found: dict,
            args: argparse.Namespace) -> dict:
    """Time networks in turn, each in its faster format; eager ones beside compiled ones."""
    set_tf32(dtype)
    runs = {PRODUCT: make_product(dtype, args)}
    networks: dict[str, dict] = {}
    for name in names:
        seconds = found['seconds'][name]
        if 'reason' in seconds:
            networks[name] = seconds
            continue
        memory = min(seconds, key=seconds.get)
        estimate = seconds[memory] * prod(shape) / prod(found['shape'])
        if estimate > args.call_limit:
            networks[name] = dict(reason=f'left out: a call takes about {estimate:.2g} s')
            continue
        try:
            model = build_network(find_network(name), shape[1:], use == 'inference', args.tiny)
            call = make_call(model, use, dtype, memory, shape, args, mode == 'compiled')
            first, peak = stopwatch(partial(peak_memory, partial(call, 0), args.device), args.device)
        except Exception as error:
            networks[name] = reason_of(error)
            continue
        networks[name] = dict(memory_format=memory, peak_memory=peak)
        if mode == 'compiled':
            networks[name]['first_call'] = first
            eager = build_network(find_network(name), shape[1:], use == 'inference', args.tiny)
            runs[f'{name}, eager'] = make_call(eager, use, dtype, memory, shape, args)
        if mode == 'eager' and estimate > args.slow:
            networks[name].update(Timing(first, first, first, 1, 1).to_dict(shape[0]))
        else:
            runs[name] = call
    subset = names != args.models
    seconds = args.seconds * (5 if subset and mode == 'eager' else 1)
    times = time_paired(runs, range(4), args.device, seconds=seconds, hide_launches=False, **args.rounds)
    product = times.pop(PRODUCT)
    for name, time in times.items():
        networks.setdefault(name, {}).update(time.to_dict(shape[0]))
    return dict(use=use, dtype=dtype, shape=shape, mode=mode, subset=subset, networks=networks,
                matrix_product=vars(product), macs_per_second=args.side**3 / product.median)


def mixers(dtype: str, found: dict, args: argparse.Namespace) -> dict:
    """Name -> timing, share of the time that ends without token mixers; with other backends, and with small kernels."""
    set_tf32(dtype)
    shape, runs, skipped = args.inference[0], {}, {}
    for name in args.models:
        seconds = found['seconds'][name]
        if 'reason' in seconds:
            skipped[name] = seconds
            continue
        memory = min(seconds, key=seconds.get)
        model = build_network(find_network(name), shape[1:], True, args.tiny)
        variants = {name: model, f'{name}, no mixers': without_mixers(model, find_network(name))}
        if name == 'PeLK-T':
            variants['PeLK-T, 7x7 kernels'] = build_network(SMALL_KERNELS, shape[1:], True, args.tiny)
        if any(isinstance(module, PeripheralConv2d) for module in model.modules()):
            variants |= {f'{name}, {backend}': with_backend(model, backend) for backend in args.backends}
        for variant, changed in variants.items():
            call = make_call(changed, 'inference', dtype, memory, shape, args)
            try:
                call(0)
                runs[variant] = call
            except RuntimeError as error:
                skipped[variant] = reason_of(error)
    times = time_paired(runs, range(4), args.device, seconds=args.seconds, hide_launches=False, **args.rounds)
    result = {variant: time.to_dict(shape[0]) for variant, time in times.items()}
    for variant in result:
        bare = times.get(f'{variant.partition(",")[0]}, no mixers')
        if bare and not variant.endswith('no mixers'):
            result[variant]['share'] = 1 - bare.median / times[variant].median
    return dict(shape=shape, dtype=dtype, mixers={**result, **skipped})


def with_backend(model: nn.Module, backend: str) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, PeripheralConv2d):
            module.backend = backend
    return model


def counts(size: tuple[int, int], args: argparse.Namespace) -> dict:
    found = {name: count_multiply_adds(find_network(name), size, args.tiny) for name in args.models}
    return dict(size=size, counts=found)


def eager_calls(args: argparse.Namespace) -> Iterator[Call]:
    """Yield the most important calls first; the goal's two networks also by themselves."""
    pair = [name for name in GOAL if name in args.models]
    first = [(use, shape) for use in USES if use in args.parts for shape in getattr(args, use)[:2]]
    later = [(use, shape) for use in USES if use in args.parts for shape in getattr(args, use)[2:]]
    for use, shape in (*first, *later):
        for dtype in args.dtypes:
            yield use, dtype, shape, 'eager', args.models
            if len(pair) == 2 and (use, shape) in first:
                yield use, dtype, shape, 'eager', pair


def compiled_calls(args: argparse.Namespace) -> Iterator[Call]:
    """Yield the same of compiled networks: the goal's two, then each of the others."""
    pair = [name for name in GOAL if name in args.models]
    for groups in ([pair] if pair else [], [[name] for name in args.models if name not in pair]):
        for use, dtype in args.compiled:
            for names in groups if dtype in args.dtypes else []:
                yield use, dtype, getattr(args, use)[0], 'compiled', names


def write_report(measurements: Measurements) -> None:
    """Write the tables and the plot beside the results."""
    text = to_markdown(measurements.report)
    measurements.file.with_suffix('.md').write_text(text, encoding='utf-8')
    print(f'\n{text}')
    if find_spec('matplotlib') and (figure := draw(measurements.report)):
        figure.savefig(measurements.file.with_suffix('.png'), dpi=130)


def main() -> None:
    args = parse_args()
    measurements = open_measurements(args, print, args.round_limit)
    if measurements is None:
        return
    for name in args.models:
        if reason := find_network(name).missing:
            print(f'{name}: {reason}')
    args.models = [name for name in args.models if not find_network(name).missing]
    known = measurements.run_once('models', list, args.models)
    if known not in (None, args.models):
        raise SystemExit(f'{args.json} is of the models {", ".join(known)}: give another file, --json FILE')

    @cache
    def faster(use: str, dtype: str) -> dict | None:
        found = measurements.run_once(f'memory formats, {use}, {dtype}', formats, use, dtype, args, needs=100)
        return None if found is None or 'failed' in found else found

    def measure(calls: Iterable[Call]) -> None:
        for use, dtype, shape, mode, names in calls:
            if found := faster(use, dtype):
                some = names if names != args.models else []
                label = ', '.join((use, dtype, 'x'.join(map(str, shape)), mode, *some))
                measurements.run_once(label, in_turn, use, dtype, shape, mode, names, found, args,
                                  needs=100 if mode == 'eager' else 90 * len(names))
            if mode == 'compiled':
                # Compiled code keeps its model.
                torch.compiler.reset()

    if 'counts' in args.parts and find_spec('mmengine'):
        for size in dict.fromkeys(shape[1:] for shape in (*args.inference, *args.training)):
            measurements.run_once(f'multiply-adds, {size[0]}x{size[1]}', counts, size, args, needs=20)
    measure(eager_calls(args))
    if 'mixers' in args.parts and (found := faster('inference', args.dtypes[0])):
        measurements.run_once(f'mixers, {args.dtypes[0]}', mixers, args.dtypes[0], found, args, needs=60)
    if 'compiled' in args.parts and not args.tiny:
        measure(compiled_calls(args))
    if measurements.report['results']:
        write_report(measurements)
    measurements.finish()


if __name__ == '__main__':
    main()
