"""Step 2 of gpu.sh: the peripheral convolution beside a copy, F.conv2d in every way that torch has, FFT and extensions.

Ours and the other methods of a shape are timed in two measurements, as a dense call may take longer than the step;
both time a copy in turn with the rest. Each method is compared with fp64 on a few planes, on the device, before. A call
is first estimated from one image, and left out above a limit. Results of the cuda backend name the kernels that ran,
with their core; where that is wgmma, mma.sync is timed beside it.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import product
from time import perf_counter
from unittest.mock import patch

import torch
from torch import Tensor

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops.peripheral_conv2d import operators, reference
from pelk_mm.ops.peripheral_conv2d.cuda import backend as cuda
from pelk_mm.ops.peripheral_conv2d.cuda import driver
from pelk_mm.testing.benchmark import rotating, time_paired
from pelk_mm.testing.measurements import open_measurements, step_parser
from pelk_mm.testing.operator_methods import CHANNELS, KERNELS, MAPS, dense_conv2d, draw, fft_conv2d, timed
from pelk_mm.testing.tolerances import relative_error

# (N, C, side, K, centre), the most important first: the goals' shapes, the other stages, batch 1, the curve over K.
SHAPES = (
    *((128, CHANNELS[i], MAPS[224][i], KERNELS[5][i], 5) for i in range(3)),
    (16, 46, 128, 101, 7),
    (128, 46, 56, 101, 7),
    (128, 374, 7, 13, 5),
    *((1, CHANNELS[i], MAPS[224][i], KERNELS[5][i], 5) for i in range(3)),
    *((16, 46, 128, kernel, 5) for kernel in (31, 51, 71, 151)),
    (2, 46, 200, 51, 5),
)
TINY_SHAPES = ((2, 3, 9, 13, 5), )
WITHOUT_WGMMA = {driver.WGMMA_VARIABLE: '0'}
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, tf32=torch.float32)


def parse_args() -> argparse.Namespace:
    parser = step_parser(__doc__, 'operator')
    parser.add_argument('--seconds', type=float, default=0.12, help='time to spend on each method')
    parser.add_argument('--dense-limit', type=float, default=0.2, metavar='SECONDS',
                        help='leave a method out where one call takes longer than this')
    return parser.parse_args()


@contextmanager
def cudnn(**flags) -> Iterator[None]:
    """Set attributes of torch.backends.cudnn for a call."""
    before = {name: getattr(torch.backends.cudnn, name) for name in flags}
    try:
        for name, value in flags.items():
            setattr(torch.backends.cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


def dense_ways() -> dict[str, dict]:
    """Name -> attributes of torch.backends.cudnn; newer versions of PyTorch let one choose the depthwise kernel."""
    if hasattr(torch.backends.cudnn, 'depthwise_kernel'):
        return {f'conv2d {kernel}': dict(depthwise_kernel=kernel) for kernel in ('auto', 'cudnn', 'native')}
    return {'conv2d auto': {}, 'conv2d native': dict(enabled=False)}


def methods(x: Tensor, theta: Tensor, grid: SharingGrid,
            ours: bool) -> dict[str, tuple[Callable, Callable[[], AbstractContextManager], bool]]:
    """Name -> function of (x, theta), what makes a context for it, and whether x is to be channels-last."""
    runs: dict[str, tuple[Callable, Callable[[], AbstractContextManager], bool]] = {}
    runs['copy'] = lambda x, theta: x.clone(), nullcontext, False
    if ours:
        able = [name for name, reason in available_backends(x, theta, grid).items() if reason is None]
        for name, last in product(('auto', *(name for name in able if name != 'reference')), (False, True)):
            label = f'{name}, channels-last' if last else name
            runs[label] = partial(peripheral_conv2d, grid=grid, backend=name), nullcontext, last
        if 'cuda' in able and 'wgmma' in str(cuda.kernels(x, grid)):
            runs['cuda, mma.sync'] = (partial(peripheral_conv2d, grid=grid, backend='cuda'),
                                      partial(patch.dict, os.environ, WITHOUT_WGMMA), False)
        return runs
    for (name, flags), last in product(dense_ways().items(), (False, True)):
        label = f'{name}, channels-last' if last else name
        runs[label] = partial(dense_conv2d, grid=grid), partial(cudnn, **flags), last
    runs['fft'] = partial(fft_conv2d, grid=grid), nullcontext, False
    if x.is_cuda and find_spec('depthwise_conv2d_implicit_gemm'):
        runs['implicit gemm'] = implicit_gemm(x, grid), nullcontext, False
    return runs


def implicit_gemm(x: Tensor, grid: SharingGrid) -> Callable:
    from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM

    from pelk_mm.ops import expand_kernel
    module = DepthWiseConv2dImplicitGEMM(x.shape[1], grid.kernel_size).to(x.device, x.dtype)
    return lambda x, theta: torch.func.functional_call(
        module, dict(weight=expand_kernel(theta, grid).unsqueeze(1)), (x, ))


def in_layout(tensors: tuple[Tensor, ...], last: bool) -> tuple[Tensor, ...]:
    if not last:
        return tensors
    return tuple(tensor.detach().contiguous(memory_format=torch.channels_last).requires_grad_(tensor.requires_grad)
                 if tensor.ndim == 4 else tensor for tensor in tensors)


def few_planes_error(run: Callable, x: Tensor, theta: Tensor, grid: SharingGrid) -> float:
    """Return the output's relative error in the first and last image and channel, against dense fp64 convolution."""
    images, channels = [0, len(x) - 1], [0, x.shape[1] - 1]
    with torch.no_grad():
        found = run(x, theta)[images][:, channels]
        right = reference.forward(x[images][:, channels].double(), theta[channels].double(), None, grid)
    return relative_error(found, right)


def seconds_of_call(run: Callable, sets: tuple[Tensor, ...]) -> float:
    """Estimate of a call from one image: warm, with everything that a call waits for."""
    x, theta, grad = sets
    one = x[:1].detach().requires_grad_(x.requires_grad), theta, grad[:1]
    seconds = math.inf
    for _ in range(2):
        if x.is_cuda:
            torch.cuda.synchronize()
        start = perf_counter()
        run(*one)
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds = perf_counter() - start
        if seconds > 10:
            break
    # Calls of one image leave most of a device idle: a third of proportional is a careful guess.
    return seconds * max(1.0, len(x) / 3)


def measure(shape: tuple[int, ...], dtype: str, ours: bool, backward: bool, args: argparse.Namespace) -> dict:
    """Name of a method -> its timing and error, or why it has none."""
    batch, channels, side, kernel, center = shape
    grid = SharingGrid.from_kernel_size(kernel, center)
    inputs = rotating(lambda seed: draw((batch, channels, side, side), grid, DTYPES[dtype], args.device, backward,
                                        seed), args.device, limit=16)
    x, theta, _ = inputs[0]
    tf32 = partial(cudnn, allow_tf32=dtype == 'tf32')
    result: dict[str, dict] = {}
    calls, layouts = {}, {}
    for name, (run, context, last) in methods(x, theta, grid, ours).items():
        call = in_contexts(timed(run, backward), tf32, context)
        try:
            estimate = seconds_of_call(call, in_layout(inputs[0], last))
            if name != 'copy' and estimate > args.dense_limit:
                result[name] = dict(reason=f'left out: a call takes about {estimate:.2g} s')
                continue
            error = None if name == 'copy' else few_planes_error(
                in_contexts(run, tf32, context), *in_layout((x, theta), last), grid)
        except RuntimeError as failure:
            result[name] = dict(reason=f'{type(failure).__name__}: {str(failure)[:200]}')
            continue
        result[name] = dict(error=error)
        if name.startswith('cuda'):
            result[name]['kernels'] = in_contexts(cuda.kernels, tf32, context)(x, grid)
        calls[name], layouts[name] = call, last
    sets = [{last: in_layout(tensors, last) for last in (False, True)} for tensors in inputs]
    runs = {name: lambda sets, call=call, last=layouts[name]: call(*sets[last]) for name, call in calls.items()}
    with torch.set_grad_enabled(backward):
        times = time_paired(runs, sets, args.device, seconds=args.seconds, **args.rounds)
    for name, time in times.items():
        result[name].update(vars(time), copies=time.median / times['copy'].median)
    return result


def measure_theta_grad(shape: tuple[int, ...], dtype: str, args: argparse.Namespace) -> dict:
    """Measure the gradient of theta by itself, of our backends."""
    batch, channels, side, kernel, center = shape
    grid = SharingGrid.from_kernel_size(kernel, center)
    inputs = rotating(lambda seed: draw((batch, channels, side, side), grid, DTYPES[dtype], args.device, False, seed),
                      args.device, limit=16)
    x, theta, _ = inputs[0]
    able = [name for name, reason in available_backends(x, theta, grid).items() if reason is None]
    runs: dict[str, Callable] = {
        name: lambda sets, name=name: operators.theta_grad(sets[0], sets[2], list(grid.half), name)
        for name in ('auto', *(name for name in able if name != 'reference'))}
    runs['copy'] = lambda sets: sets[0].clone()
    times = time_paired(runs, inputs, args.device, seconds=args.seconds, **args.rounds)
    return {name: dict(vars(time), copies=time.median / times['copy'].median) for name, time in times.items()}


def in_contexts(call: Callable, *contexts: Callable[[], AbstractContextManager]) -> Callable:
    """Enter a new context of each kind around each call."""
    def run(*args):
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            return call(*args)

    return run


def main() -> None:
    args = parse_args()
    measurements = open_measurements(args, print, seconds=30)
    if measurements is None:
        return
    shapes = TINY_SHAPES if args.tiny else SHAPES
    # All of ours comes first.
    for ours, shape, dtype in product((True, False), shapes, DTYPES):
        name = '{}x{}x{}x{}, K {}, '.format(*shape[:3], *shape[2:4]) + f'{dtype}, {"ours" if ours else "others"}'
        if dtype == 'tf32' and args.tiny:
            continue
        measurements.run_once(f'{name}, forward', measure, shape, dtype, ours, False, args, needs=20)
        if dtype != 'tf32':
            measurements.run_once(f'{name}, forward and backward', measure, shape, dtype, ours, True, args, needs=20)
        if dtype != 'tf32' and ours:
            measurements.run_once(f'{name}, dtheta', measure_theta_grad, shape, dtype, args, needs=10)
    measurements.finish()


if __name__ == '__main__':
    main()
