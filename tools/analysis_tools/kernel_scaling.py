"""Print and draw the parameters of a network whose every depthwise kernel is replaced by one of 7x7 ... 151x151.

Writes kernel_scaling.csv and kernel_scaling.png into a folder: dense kernels, pairs of stripes and peripheral ones.
"""

import argparse
import csv
from pathlib import Path

from pelk_mm.analysis import build_model
from pelk_mm.analysis.figures import save_figure
from pelk_mm.analysis.kernel_scaling import draw_scaling, scale_kernels
from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.engine.launch import read_config

CONVNEXT_TINY = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', nargs='?', default=CONVNEXT_TINY, help=f'config, a file or TOOLBOX::NAME; default {CONVNEXT_TINY}')
    parser.add_argument(
        '--kernels', type=int, nargs=3, default=(7, 151, 4), metavar=('FIRST', 'LAST', 'STEP'), help='default 7 151 4')
    parser.add_argument('--center', type=int, default=5, help='unshared centre of peripheral kernels, default 5')
    parser.add_argument('--stripe-width', type=int, default=5, help='default 5, as in SLaK')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/kernel_scaling'), help='folder to write to')
    args = parser.parse_args()
    first, last, step = args.kernels
    if first < 1 or first % 2 == 0 or last < first or step < 2 or step % 2:
        parser.error(f'--kernels needs an odd first size, a last one not below it and an even step, got {args.kernels}')
    args.kernels = range(first, last + 1, step)
    return args


def main() -> None:
    args = parse_args()
    table, picture = args.out / 'kernel_scaling.csv', args.out / 'kernel_scaling.png'
    refuse_existing(table, picture)
    rows = scale_kernels(build_model(read_config(args.config)), args.kernels, args.center, args.stripe_width)
    print(f'{"K":>4}  {"dense M":>9}  {"stripe M":>9}  {"peripheral M":>12}')
    for row in rows:
        print(f'{row["kernel_size"]:4}  {row["dense"] / 1e6:9.2f}  {row["stripe"] / 1e6:9.2f}  '
              f'{row["peripheral"] / 1e6:12.2f}')
    args.out.mkdir(parents=True, exist_ok=True)
    with table.open('x', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    name = 'ConvNeXt-T' if args.config == CONVNEXT_TINY else Path(args.config.rpartition('::')[-1]).stem
    save_figure(draw_scaling(rows, name, args.center, args.stripe_width), picture)
    print(f'written: {picture}, {table}')


if __name__ == '__main__':
    main()
