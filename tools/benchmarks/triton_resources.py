"""Print the registers, spills, shared memory and tensor-core instructions of the Triton kernels. Needs no GPU."""

import argparse

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pelk_mm.ops.peripheral_conv2d import triton_backend
from pelk_mm.testing.interpreter_triton import compile_kernel, triton_process

KERNELS = [('forward_kernel', tile) for tiles in (triton_backend.FORWARD_TILES, triton_backend.SMALL_FORWARD_TILES)
           for tile in tiles.values()]
KERNELS += [('theta_grad_kernel', tile) for tile in triton_backend.THETA_GRAD_TILES.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--capability', type=int, default=90, help='compute capability, 90 for 9.0')
    parser.add_argument('--dtypes', nargs='+', default=['fp32', 'bf16'], choices=['fp32', 'bf16', 'fp16'])
    parser.add_argument('--aligns', type=int, nargs='+', default=[4, 1], choices=[4, 2, 1])
    parser.add_argument('--wide', action='store_true', help='offsets of 64 bits')
    args = parser.parse_args()
    table = Table('kernel', 'G, BK, BN, warps', 'dtype', 'align', 'registers', 'spilled bytes', 'shared bytes',
                  'tensor cores', 'load bits')
    variants = [(kernel, triton_backend.fit_registers(tile, align), dtype, align) for kernel, tile in KERNELS
                for dtype in args.dtypes for align in args.aligns]
    with triton_process(interpret=False) as process:
        for kernel, tile, dtype, align in track(variants, 'compiling', transient=True):
            resources = process.submit(compile_kernel, kernel, tuple(tile), dtype, args.capability, align,
                                       args.wide).result()
            table.add_row(kernel, ', '.join(map(str, tile)), dtype, *map(str, (align, *resources)))
    Console().print(table)


if __name__ == '__main__':
    main()
