"""Compile the CUDA kernels for every architecture and write their registers, spills and shared memory. Needs no GPU.

The table, pelk_mm/ops/peripheral_conv2d/cuda/resources.json, is of the paper's stages at 224 pixels, fp32 and bf16.
"""

import argparse
import json
from pathlib import Path

import torch

from pelk_mm.ops import SharingGrid
from pelk_mm.ops.peripheral_conv2d.cuda import nvrtc
from pelk_mm.ops.peripheral_conv2d.cuda.plan import Shape, plan_forward, plan_theta_grad

# Shared memory that a block may have, in KiB less the one that the system takes.
ARCHITECTURES = {'sm_80': 163, 'sm_89': 99, 'sm_90a': 227, 'sm_100': 227, 'sm_120': 99}
STAGES = ((51, 5, 56), (49, 5, 28), (47, 5, 14), (13, 5, 7), (101, 7, 56))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=nvrtc.SOURCES / 'resources.json')
    parser.add_argument('--architectures', nargs='+', default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    args = parser.parse_args()
    rows = []
    for architecture in args.architectures:
        for kernel_size, center, side in STAGES:
            for dtype, parts in ((torch.float32, 2), (torch.bfloat16, 1)):
                grid = SharingGrid.from_kernel_size(kernel_size, center)
                shape = Shape(128, 46, side, side, dtype, parts, ARCHITECTURES[architecture] * 1024)
                # Where there is wgmma, mma.sync too: PELK_MM_WGMMA=0.
                shapes = (shape._replace(wgmma=True), shape) if architecture == 'sm_90a' else (shape, )
                launches = [plan_forward(grid, each) for each in shapes] + [plan_theta_grad(grid, shape)]
                different = {launch.variant: launch for launch in launches if launch}.values()
                rows += [row(launch, architecture, grid, shape) for launch in different]
                print(json.dumps(rows[-1]), flush=True)
    head = json.dumps(dict(sources=nvrtc.source_digest(), nvrtc=nvrtc.version()))[1:-1]
    lines = ',\n  '.join(map(json.dumps, rows))
    args.out.write_text(f'{{{head}, "kernels": [\n  {lines}\n]}}\n')


def row(launch, architecture, grid, shape) -> dict:
    resources = nvrtc.resources(launch.variant, architecture)
    return dict(
        kernel=launch.variant.kernel,
        core=launch.core,
        architecture=architecture,
        size=grid.kernel_size,
        map=shape.height,
        dtype=str(shape.dtype).removeprefix('torch.'),
        **resources._asdict(),
        threads=launch.threads,
        shared=launch.shared,
        macros=dict(launch.variant.macros))


if __name__ == '__main__':
    main()
