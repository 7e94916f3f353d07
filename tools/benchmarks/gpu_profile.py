"""Step 4 of gpu.sh: where the time goes, by torch.profiler, and the cost of the layout copies around the op.

A network's result lists the seconds a call of its longest kernels, and their sums by kind of kernel. A layout's result
compares the op on planes, which needs no copies, with the op on the first channels of a channels-last tensor, as the
networks call it.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pelk_mm.nets import PeLK
from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.ops.concat_layer_norm import concat_layer_norm
from pelk_mm.testing.benchmark import rotating, time_paired
from pelk_mm.testing.measurements import open_measurements, step_parser
from pelk_mm.testing.operator_methods import CHANNELS, KERNELS, MAPS, SHRUNK

NETWORKS = {'PeLK-T': 'tiny', 'PeLK-T-w1': 'tiny-w1'}
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16)
# The first kind of which a part is in a kernel's name.
KINDS = {
    'peripheral convolution': ('forward_kernel', 'theta_grad_kernel', 'pelk'),
    'matrix products': ('gemm', 'cutlass', 'cublas', 'sm90_xmma', 'nvjet', 'addmm', '_mm', 'linear'),
    'concatenation': ('cat', ),
    'norms': ('norm', 'welford', 'batch'),
    'other convolutions': ('conv', 'implicit', 'winograd', 'dgrad', 'wgrad'),
    'copies and layouts': ('copy', 'transpose', 'nchw', 'nhwc', 'memcpy'),
    'elementwise': ('elementwise', 'vectorized', 'gelu', 'add', 'mul'),
    'reductions': ('reduce', 'sum'),
}


def parse_args() -> argparse.Namespace:
    parser = step_parser(__doc__, 'profile')
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--size', type=int, default=224, help='side of the image')
    return parser.parse_args()


def kind_of(kernel: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in kernel.lower() for part in parts)), 'other')


def profiled(run: Callable[[], object], device: str, calls: int = 3) -> dict:
    """Return the seconds a call by kernel, the longest, and by kind; operators instead of kernels on the CPU."""
    on_gpu = torch.device(device).type == 'cuda'
    for _ in range(2):
        run()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as found:
        for _ in range(calls):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    seconds: Counter[str] = Counter()
    for event in found.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        # Operators would count the time of their kernels again.
        if microseconds and (not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA):
            seconds[event.key] += microseconds / 1e6 / calls
    kinds: Counter[str] = Counter()
    for kernel, value in seconds.items():
        kinds[kind_of(kernel)] += value
    return dict(total=sum(seconds.values()), kinds=dict(kinds.most_common()),
                kernels={kernel[:120]: value for kernel, value in seconds.most_common(25)})


def network(name: str, dtype: str, train: bool, args: argparse.Namespace) -> dict:
    """Profile a call of the deployed network, or forward and backward in training (bf16 by autocast)."""
    model: nn.Module = PeLK(NETWORKS[name], **(SHRUNK if args.tiny else {}))
    if not train:
        model.eval().switch_to_deploy()
    model.to(args.device, torch.float32 if train else DTYPES[dtype])
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device, dtype=next(model.parameters()).dtype)
    precision = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=train and dtype == 'bf16')

    def run() -> None:
        with torch.set_grad_enabled(train), precision:
            out = model(x)[-1]
        if train:
            out.float().square().mean().backward()
            model.zero_grad()

    return profiled(run, args.device)


def layouts(stage: int, dtype: str, args: argparse.Namespace) -> dict:
    """Time the op on planes and on a slice of a channels-last tensor, and the concatenation and norm behind it."""
    channels, side, kernel = CHANNELS[stage], MAPS[224][stage], KERNELS[5][stage]
    width, grid = channels * 8 // 3, SharingGrid.from_kernel_size(kernel, 5)

    def make(seed: int) -> dict[str, Tensor]:
        x = torch.randn(args.batch, width, side, side, device=args.device, dtype=DTYPES[dtype])
        theta = torch.randn(channels, grid.num_cells, grid.num_cells, device=args.device, dtype=DTYPES[dtype])
        return dict(planes=x[:, :channels].contiguous(), last=x.contiguous(memory_format=torch.channels_last),
                    theta=theta)

    def joined(sets: dict[str, Tensor]) -> Tensor:
        x = sets['last']
        return F.layer_norm(torch.cat((x[:, :channels], x[:, channels:]), 1).permute(0, 2, 3, 1), (width, ))

    runs: dict[str, Callable] = {
        'copy of the planes': lambda sets: sets['planes'].clone(),
        'op on planes': lambda sets: peripheral_conv2d(sets['planes'], sets['theta'], grid),
        'op on a channels-last slice': lambda sets: peripheral_conv2d(sets['last'][:, :channels], sets['theta'], grid),
        'slice to planes': lambda sets: sets['last'][:, :channels].contiguous(),
        'concatenation and LayerNorm': joined,
        'LayerNorm of both parts': lambda sets: concat_layer_norm(
            sets['planes'], sets['last'][:, channels:], None, None, 1e-6),
    }
    with torch.no_grad():
        times = time_paired(runs, rotating(make, args.device, limit=4), args.device, seconds=0.2, **args.rounds)
    return {name: vars(time) for name, time in times.items()}


def main() -> None:
    args = parse_args()
    measurements = open_measurements(args, print, seconds=10)
    if measurements is None:
        return
    names, dtypes, stages = list(NETWORKS), list(DTYPES), range(3)
    if args.tiny:
        args.batch, args.size, names, dtypes, stages = 1, 64, names[1:], dtypes[:1], range(2, 3)
    for stage in stages:
        for dtype in dtypes:
            measurements.run_once(f'layouts, stage {stage + 1}, {dtype}', layouts, stage, dtype, args, needs=10)
    for name in names:
        for dtype in dtypes:
            for use, train in (('inference', False), ('training', True)):
                measurements.run_once(f'{use}, {name}, {dtype}', partial(network, name, dtype, train, args), needs=20)
    measurements.finish()


if __name__ == '__main__':
    main()
