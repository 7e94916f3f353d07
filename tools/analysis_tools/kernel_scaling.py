"""Print and draw the costs of larger depthwise kernels: dense, as pairs of stripes, peripheral (PeLK, Fig. 2 and 6).

Figure 6: the parameters of a network whose every depthwise kernel is replaced by one of 7x7 ... 151x151, in
kernel_scaling.csv and kernel_scaling.png. Figure 2: multiples of the parameters of a kernel of 7x7, dense and stripes,
up to 51x51, and beside them the mIoU that the runs of configs/ablations/fig2_kernel_size gain, in kernel_gain.csv and
kernel_gain.png.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pelk_mm import compat
from pelk_mm.analysis import build_model
from pelk_mm.analysis.figures import save_figure
from pelk_mm.analysis.kernel_scaling import draw_scaling, scale_kernels
from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.engine.launch import read_config
from pelk_mm.reports import find_runs
from pelk_mm.reports.kernel_gain import FORMS, draw_gain, find_points, gains, parameter_multiples

ROOT = Path(__file__).resolve().parents[2]
CONVNEXT_TINY = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'
KERNELS = {2: (7, 51, 4), 6: (7, 151, 4)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', nargs='?', help=f'of figure 6: config, a file or TOOLBOX::NAME; default {CONVNEXT_TINY}')
    parser.add_argument('--figure', type=int, choices=list(KERNELS), default=6, help='default 6')
    parser.add_argument(
        '--kernels',
        type=int,
        nargs=3,
        metavar=('FIRST', 'LAST', 'STEP'),
        help='default 7 51 4 for figure 2, 7 151 4 for figure 6')
    parser.add_argument('--center', type=int, help='of figure 6: unshared centre of peripheral kernels, default 5')
    parser.add_argument('--stripe-width', type=int, default=5, help='default 5, as in SLaK')
    parser.add_argument(
        '--runs',
        type=Path,
        nargs='+',
        default=[],
        metavar='DIR',
        help='of figure 2: work directories, or folders that contain such, to take mIoU from')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/kernel_scaling'), help='folder to write to')
    args = parser.parse_args()
    if args.figure == 2 and (args.config is not None or args.center is not None):
        parser.error('config and --center are of --figure 6; figure 2 is of one dense kernel or pair of stripes')
    if args.figure == 6 and args.runs:
        parser.error('--runs is of --figure 2; figure 6 has no mIoU')
    for folder in args.runs:
        if not folder.is_dir():
            parser.error(f'--runs must be folders, got {folder}')
    first, last, step = args.kernels or KERNELS[args.figure]
    if first < 1 or first % 2 == 0 or last < first or step < 2 or step % 2:
        parser.error(f'--kernels needs an odd first size, a last one not below it and an even step, got {args.kernels}')
    args.kernels = range(first, last + 1, step)
    args.center = 5 if args.center is None else args.center
    return args


def write_csv(rows: Sequence[Mapping], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('x', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def draw_figure_2(args: argparse.Namespace, table: Path, image: Path) -> None:
    compat.setup()
    runs, problems = find_runs(args.runs)
    points, remarks = find_points(runs, ROOT) if runs else ([], [])
    points = [point for point in points if args.kernels[0] <= point.kernel_size <= args.kernels[-1]]
    gained = gains(points, args.kernels[0])
    remarks += [f'left out: {problem.where} {problem.text}' for problem in problems]
    remarks += [
        f'no finished run of {form} kernels of {args.kernels[0]}, so the gain of the others is not known'
        for form in FORMS if form not in gained and any(point.form == form for point in points)
    ]
    sizes = sorted({*args.kernels, *(point.kernel_size for point in points)})
    multiples = parameter_multiples(sizes, args.stripe_width)
    mious = {(point.form, point.kernel_size): point for point in points}
    print(f'{"K":>4}' + ''.join(f'  {form + " x":>9}  {"mIoU":>6}  {"gain":>6}  {"runs":>4}' for form in FORMS))
    rows = []
    for index, size in enumerate(sizes):
        row: dict = dict(kernel_size=size)
        line = f'{size:4}'
        for form in FORMS:
            point, gain = mious.get((form, size)), gained.get(form, {}).get(size)
            row.update({
                f'{form}_multiple': multiples[form][index],
                f'{form}_miou': point and point.miou,
                f'{form}_gain': gain,
                f'{form}_runs': len(point.mious) if point else 0
            })
            line += (f'  {multiples[form][index]:9.1f}  {f"{point.miou:.2f}" if point else "-":>6}  '
                     f'{"-" if gain is None else f"{gain:+.2f}":>6}  {len(point.mious) if point else 0:4}')
        rows.append(row)
        print(line)
    write_csv(rows, table)
    save_figure(draw_gain(sizes, gained, args.stripe_width), image)
    for remark in remarks:
        print(remark, file=sys.stderr)


def draw_figure_6(args: argparse.Namespace, table: Path, image: Path) -> None:
    config = args.config or CONVNEXT_TINY
    rows = scale_kernels(build_model(read_config(config)), args.kernels, args.center, args.stripe_width)
    print(f'{"K":>4}  {"dense M":>9}  {"stripe M":>9}  {"peripheral M":>12}')
    for row in rows:
        print(f'{row["kernel_size"]:4}  {row["dense"] / 1e6:9.2f}  {row["stripe"] / 1e6:9.2f}  '
              f'{row["peripheral"] / 1e6:12.2f}')
    write_csv(rows, table)
    name = 'ConvNeXt-T' if config == CONVNEXT_TINY else Path(config.rpartition('::')[-1]).stem
    save_figure(draw_scaling(rows, name, args.center, args.stripe_width), image)


def main() -> None:
    args = parse_args()
    name, draw = ('kernel_gain', draw_figure_2) if args.figure == 2 else ('kernel_scaling', draw_figure_6)
    table, image = args.out / f'{name}.csv', args.out / f'{name}.png'
    refuse_existing(table, image)
    draw(args, table, image)
    print(f'written: {image}, {table}')


if __name__ == '__main__':
    main()
