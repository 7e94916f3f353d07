"""Print and draw the costs of larger depthwise kernels: dense, as pairs of stripes, peripheral (PeLK, Fig. 2 and 6).

Figure 6: the parameters of a network whose every depthwise kernel is replaced by one of 7x7 ... 151x151, in
kernel_scaling.csv and kernel_scaling.png. Figure 2: multiples of the parameters of a kernel of 7x7, dense and stripes,
up to 51x51, and beside them the mIoU that the runs of configs/ablations/fig2_kernel_size gain, in kernel_gain.csv and
kernel_gain.png.
"""

import argparse
import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure

from pelk_mm import compat
from pelk_mm.analysis import build_model
from pelk_mm.analysis.figures import save_figure
from pelk_mm.analysis.kernel_scaling import draw_scaling, scale_kernels
from pelk_mm.analysis.text_tables import to_columns
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


def figure_2(args: argparse.Namespace) -> tuple[list[dict], list[list[str]], Figure]:
    """Return the rows of the file, those to print, and the figure."""
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
    for remark in remarks:
        print(remark, file=sys.stderr)
    sizes = sorted({*args.kernels, *(point.kernel_size for point in points)})
    multiples = parameter_multiples(sizes, args.stripe_width)
    found = {(point.form, point.kernel_size): point for point in points}
    rows = []
    for index, size in enumerate(sizes):
        rows.append(dict(kernel_size=size))
        for form in FORMS:
            point = found.get((form, size))
            rows[-1].update({
                f'{form}_multiple': multiples[form][index],
                f'{form}_miou': point and point.miou,
                f'{form}_gain': gained.get(form, {}).get(size),
                f'{form}_runs': len(point.mious) if point else 0
            })
    formats = ('', *('.1f', '.2f', '+.2f', '') * len(FORMS))
    lines = [['-' if value is None else format(value, kind) for value, kind in zip(row.values(), formats)]
             for row in rows]
    header = ['K', *(head for form in FORMS for head in (f'{form} x', 'mIoU', 'gain', 'runs'))]
    return rows, [header, *lines], draw_gain(sizes, gained, args.stripe_width)


def figure_6(args: argparse.Namespace) -> tuple[list[dict], list[list[str]], Figure]:
    """Return the rows of the file, those to print, and the figure."""
    config = args.config or CONVNEXT_TINY
    rows = scale_kernels(build_model(read_config(config)), args.kernels, args.center, args.stripe_width)
    kinds = ('dense', 'stripe', 'peripheral')
    lines = [[str(row['kernel_size']), *(f'{row[kind] / 1e6:.2f}' for kind in kinds)] for row in rows]
    name = 'ConvNeXt-T' if config == CONVNEXT_TINY else Path(config.rpartition('::')[-1]).stem
    figure = draw_scaling(rows, name, args.center, args.stripe_width)
    return rows, [['K', *(f'{kind} M' for kind in kinds)], *lines], figure


def main() -> None:
    args = parse_args()
    name, make = ('kernel_gain', figure_2) if args.figure == 2 else ('kernel_scaling', figure_6)
    table, image = args.out / f'{name}.csv', args.out / f'{name}.png'
    refuse_existing(table, image)
    rows, lines, figure = make(args)
    print(to_columns(lines))
    save_figure(figure, image)
    with table.open('x', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f'written: {image}, {table}')


if __name__ == '__main__':
    main()
