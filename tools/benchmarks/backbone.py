"""Time the large kernels end to end: PeLK with each backend, beside the same net with small kernels and with none.

The peers share everything but the token mixer: ``7x7`` convolves the same channels densely with 7x7 kernels by
F.conv2d, ``none`` passes them through. All variants of an arch are timed in one run, deployed, in eval mode.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from pelk_mm.layers import PartialMixer, PeripheralConv2d
from pelk_mm.models import PeLK
from pelk_mm.ops.peripheral_conv2d.backends import BACKENDS
from pelk_mm.testing.benchmark import environment, peak_memory, rotating, save_report, time_paired, why_no_device


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--archs', nargs='+', default=['tiny', 'tiny-101'], choices=sorted(PeLK.arch_settings))
    parser.add_argument('--size', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'])
    parser.add_argument('--backends', nargs='+', default=['auto'], help='"auto", "all", or names of backends')
    parser.add_argument('--seconds', type=float, default=3.0, help='time to spend on each variant')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results')
    return parser.parse_args()


def build(arch: str, backend: str | None = None, **kwargs) -> nn.Module:
    model = PeLK(arch, out_indices=(0, 1, 2, 3), gap_before_final_norm=False, **kwargs).eval()
    model.switch_to_deploy()
    for module in model.modules():
        if isinstance(module, PeripheralConv2d):
            module.backend = backend
    return model


def without_mixers(arch: str) -> nn.Module:
    model = build(arch)
    for block in (block for stage in model.stages for block in stage.blocks):
        assert isinstance(block.mixer, PartialMixer)
        block.mixer = nn.Identity()
    return model


def main() -> None:
    args = parse_args()
    console = Console()
    reason = why_no_device(args.device)
    if reason:
        console.print(reason)
        return
    dtype = getattr(torch, args.dtype)
    backends = ['auto', *BACKENDS] if 'all' in args.backends else args.backends
    inputs = rotating(lambda seed: torch.randn(args.batch, 3, *args.size, dtype=dtype, device=args.device), args.device)
    models = {}
    for arch in args.archs:
        for backend in backends:
            model = build(arch, None if backend == 'auto' else backend).to(args.device, dtype)
            try:
                model(inputs[0])
            except RuntimeError as error:
                console.print(f'{arch}, {backend}: left out, {error}')
                continue
            models[f'{arch}, {backend}'] = model
    first = args.archs[0]
    small = build(first, 'reference', kernel_sizes=(7, 7, 7, 7), grids='dense')
    models[f'{first}, 7x7 kernels'] = small.to(args.device, dtype)
    models[f'{first}, no token mixer'] = without_mixers(first).to(args.device, dtype)
    times = time_paired(models, inputs, args.device, seconds=args.seconds)
    bare = times[f'{first}, no token mixer'].median
    table = Table('variant', 'ms', 'spread', 'images/s', 'token mixers', 'peak MiB',
                  title=f'batch {args.batch}, {args.size[0]}x{args.size[1]}, {args.dtype}, {args.device}')
    report = dict(
        environment=environment(args.device), batch=args.batch, size=list(args.size), dtype=args.dtype, variants={})
    for name, time in times.items():
        memory = peak_memory(partial(models[name], inputs[0]), args.device)
        share = 1 - bare / time.median
        report['variants'][name] = dict(time.to_dict(args.batch), mixer_share=share, peak_memory=memory)
        table.add_row(name, f'{1e3 * time.median:.2f}', f'{time.spread:.1%}', f'{args.batch / time.median:.1f}',
                      f'{share:.1%}', '-' if memory is None else f'{memory / 2**20:.0f}')
    console.print(report['environment'])
    console.print(table)
    if args.json:
        save_report(report, args.json)


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
