"""Step 1 of gpu.sh: every kernel, dtype, layout and gradient against fp64; CUDA graphs; compute-sanitizer.

A result lists the relative errors of output and gradients, and the cases over the bound of ``pelk_mm.testing``; of the
cuda backend also the kernels that ran, with their core (``wgmma`` on compute capability 9.0, else ``mma.sync``).
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from pelk_mm.layers import PeripheralConv2d
from pelk_mm.ops import SharingGrid, available_backends
from pelk_mm.ops.concat_layer_norm import concat_layer_norm
from pelk_mm.ops.peripheral_conv2d.agreement import difference
from pelk_mm.ops.peripheral_conv2d.backends import BACKENDS
from pelk_mm.ops.peripheral_conv2d.cuda import backend as cuda
from pelk_mm.testing.cases import CASES, GRIDS, POISON_CASES, PRECISION_CASES, Case, Inputs, expected, poison, run
from pelk_mm.testing.measurements import open_measurements, step_parser
from pelk_mm.testing.operator_methods import CHANNELS, KERNELS, MAPS
from pelk_mm.testing.tolerances import RELATIVE_ERROR, relative_error

NAMES = ('output', 'x', 'theta', 'bias')
# Planes enough for the largest tiles, by the sizes of the paper's stages.
LARGE = tuple(
    Case(f'{size}-stage{stage}-{layout}', (4 if size == 512 else 32, channels, side, side),
         SharingGrid.from_kernel_size(kernel, center), layout)
    for (size, center), layout in zip(((224, 5), (224, 7), (512, 7)), ('contiguous', 'channels_last', 'contiguous'))
    for stage, (channels, side, kernel) in enumerate(zip(CHANNELS, MAPS[size], KERNELS[center]), 1))


def parse_args() -> argparse.Namespace:
    parser = step_parser(__doc__, 'correctness')
    parser.add_argument('--sanitized', metavar='BACKEND', help='only run tiny shapes once, inside compute-sanitizer')
    return parser.parse_args()


def errors(case: Case, dtype: torch.dtype, backend: str, device: str, exact: str) -> dict[str, float]:
    """Return relative errors by name; ``exact`` is how fp64 is computed: ``'cpu'`` densely there, else by box sums."""
    inputs = case.make(dtype, device)
    if exact == 'cpu':
        right = expected(inputs, case.grid)
    else:
        right = run(Inputs(*(tensor.double().contiguous() for tensor in inputs)), case.grid, 'box_sums')
    return {name: relative_error(actual, value) if torch.isfinite(value).all() else 0.0
            for name, actual, value in zip(NAMES, run(inputs, case.grid, backend), right)}


def check_cases(cases: Sequence[Case], dtype: torch.dtype, backend: str, device: str, exact: str) -> dict:
    """Return the largest errors over the cases, those over the bound, and the kernels of the cuda backend."""
    worst, wrong, kernels = dict.fromkeys(NAMES, 0.0), {}, set()
    for case in cases:
        if available_backends(*case.make(dtype, device)[:2], case.grid)[backend] is not None:
            continue
        if backend == 'cuda':
            kernels.update(cuda.kernels(case.make(dtype, device).x, case.grid).values())
        for name, error in errors(case, dtype, backend, device, exact).items():
            # In fp16 a sum over many pixels may be infinite, rightly.
            worst[name] = max(worst[name], error)
            if not error <= RELATIVE_ERROR[dtype] * (3 if name == 'bias' else 1):
                wrong[f'{case.id}, {name}'] = error
    return dict(worst=worst, wrong=wrong, **(dict(kernels=sorted(kernels)) if backend == 'cuda' else {}))


def check_poison(backend: str, device: str) -> dict:
    """List the cases in which a NaN in a plane reaches another plane."""
    reached = []
    for case in POISON_CASES:
        inputs, others = poison(case.make(device=device), torch.nan)
        output, grad_x, grad_theta, _ = run(inputs, case.grid, backend)
        fine = output[others].isfinite().all() and grad_x.isfinite().all() and grad_theta[[0, 2]].isfinite().all()
        reached += [] if fine else [case.id]
    return dict(wrong=reached)


def check_repeatable(backend: str, device: str) -> dict:
    """Check that the same call gives the same bits twice."""
    case = LARGE[0]
    first, second = (run(case.make(device=device), case.grid, backend) for _ in range(2))
    return dict(wrong=[name for name, one, other in zip(NAMES, first, second) if not torch.equal(one, other)])


def check_first_use(backend: str, device: str) -> dict:
    """Run the comparison that precedes every first use, by direction."""
    x = torch.ones(2, 4, 14, 14, device=device)
    return {function: difference(BACKENDS[backend], function, x, GRIDS['k47'])
            for function in ('forward', 'theta_grad')}


@torch.no_grad()
def check_layer_norm(channels: int, side: int, dtype: torch.dtype, device: str) -> dict:
    """Check LayerNorm over planes beside a channels-last slice, as a block's, which one kernel computes on GPUs."""
    x = torch.randn(8, channels * 8 // 3, side, side, device=device).to(dtype)
    a, b = x[:, :channels].contiguous(), x.contiguous(memory_format=torch.channels_last)[:, channels:]
    parameters = torch.randn(2, x.shape[1], device=device).to(dtype)
    right = concat_layer_norm(a.double(), b.double(), *parameters.double(), 1e-6)
    error = relative_error(concat_layer_norm(a, b, *parameters, 1e-6), right)
    return dict(error=error, wrong=[] if error <= RELATIVE_ERROR[dtype] else ['output'])


def check_cuda_graph(backend: str, device: str) -> dict:
    """Compare a captured call, replayed with other inputs, with an eager one."""
    layer = make_layer(backend, device)
    x = torch.randn(4, 8, 28, 28, device=device)
    with torch.no_grad():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        return dict(error=relative_error(out, layer(x)))


def check_compiled(backend: str, device: str, mode: str) -> dict:
    """Compare compiled training steps with eager ones, which run afterwards: the first call is the compiled one."""
    layer = make_layer(backend, device, grid=SharingGrid.from_half([6, 5, 3, 1]))
    compiled = torch.compile(layer, mode=mode)
    worst = 0.0
    for seed in range(4):
        x = torch.randn(4, 8, 28, 28, device=device, generator=torch.Generator(device).manual_seed(seed))
        found, right = (gradients(model, layer, x) for model in (compiled, layer))
        worst = max(worst, *(relative_error(one, other) for one, other in zip(found, right)))
    return dict(error=worst)


def make_layer(backend: str, device: str, grid: SharingGrid = GRIDS['k51']) -> PeripheralConv2d:
    layer = PeripheralConv2d(8, grid.kernel_size, grid=grid.half).to(device)
    layer.backend = backend
    return layer


def gradients(model: Callable, layer: PeripheralConv2d, x: Tensor) -> list[Tensor]:
    out = model(x)
    return [out.detach().clone(), *(grad.clone() for grad in torch.autograd.grad(out.square().sum(),
                                                                                 list(layer.parameters())))]


def sanitize(tool: str, backend: str, device: str) -> dict:
    """Run the tiny shapes inside a tool of compute-sanitizer."""
    if not shutil.which('compute-sanitizer'):
        return dict(reason='not measured: compute-sanitizer is not installed')
    command = ['compute-sanitizer', '--tool', tool, '--error-exitcode', '9', sys.executable, __file__,
               '--device', device, '--sanitized', backend]
    # The allocator would hide accesses beyond a tensor.
    environment = dict(os.environ, PYTORCH_NO_CUDA_MEMORY_CACHING='1')
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    return dict(exit_code=result.returncode, output=(result.stdout + result.stderr)[-1500:])


def run_sanitized(backend: str, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        # The last one takes wgmma, where there is.
        for shape, grid in (((2, 2, 5, 6), 'k13'), ((1, 1, 17, 20), 'k13'), ((1, 1, 6, 67), 'k13'),
                            ((1, 1, 35, 40), 'k51')):
            inputs = Case('tiny', shape, GRIDS[grid]).make(dtype, device)
            BACKENDS[backend].convolve(*inputs[:3], GRIDS[grid], True)
            BACKENDS[backend].theta_grad(inputs.x, inputs.grad_output, GRIDS[grid])
            with torch.no_grad():
                concat_layer_norm(inputs.x, inputs.x[:, :1], None, None, 1e-6)
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def main() -> None:
    args = parse_args()
    if args.sanitized:
        run_sanitized(args.sanitized, args.device)
        return
    measurements = open_measurements(args, print, fastest=False)
    if measurements is None:
        return
    device, on_gpu = args.device, torch.device(args.device).type == 'cuda'
    probe = Case('probe', (1, 2, 9, 9), GRIDS['k13']).make(device=device)
    able = [name for name, reason in available_backends(*probe[:2], GRIDS['k13']).items() if reason is None]
    # Kernels of our own first; the dense path is listed for comparison.
    small, precise = (CASES[:2], PRECISION_CASES[:1]) if args.tiny else (CASES, PRECISION_CASES)
    large = (Case('large', (2, 3, 9, 8), GRIDS['k13']), ) if args.tiny else LARGE
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for backend in able:
        for dtype in dtypes:
            measurements.run_once(f'small, {backend}, {dtype}', check_cases, small, dtype, backend, device, 'cpu')
        if backend == 'reference':
            continue
        for dtype, case in product(dtypes, large):
            name = f'{case.id}, {backend}, {dtype}'
            measurements.run_once(name, check_cases, [case], dtype, backend, device, 'device')
        measurements.run_once(f'NaN, {backend}', check_poison, backend, device)
        measurements.run_once(f'precision, {backend}', check_cases, precise, torch.float32, backend, device, 'device')
    for dtype, (channels, side) in product(dtypes, list(zip(CHANNELS, MAPS[224]))[3 if args.tiny else 0:]):
        measurements.run_once(f'LayerNorm, {channels}, {dtype}', check_layer_norm, channels, side, dtype, device)
    for backend in (name for name in able if name != 'reference'):
        measurements.run_once(f'first use, {backend}', check_first_use, backend, device)
        if not args.tiny:
            measurements.run_once(f'same bits, {backend}', check_repeatable, backend, device)
        if backend != 'box_sums':
            for tool in ('memcheck', 'racecheck'):
                measurements.run_once(f'{tool}, {backend}', sanitize, tool, backend, device, needs=100)
    for backend in (name for name in (*able, 'auto') if on_gpu and name not in ('reference', 'box_sums')):
        for mode in ('default', 'reduce-overhead'):
            measurements.run_once(f'compiled, {mode}, {backend}', check_compiled, backend, device, mode, needs=60)
        measurements.run_once(f'CUDA graph, {backend}', check_cuda_graph, backend, device)
    measurements.finish()


if __name__ == '__main__':
    main()
