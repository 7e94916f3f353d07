"""Draw the sharing grids, the expanded kernels and the positional embeddings of a model, stage by stage.

Writes kernels.png, kernels.json and, where kernels are shared, grids.png into a folder.
"""

import argparse
from pathlib import Path

from mmengine.config import DictAction

from pelk_mm.analysis import build_with_weights
from pelk_mm.analysis.figures import save_figure, save_json
from pelk_mm.analysis.kernels import collect_kernels, draw_kernels, draw_sharing_grids
from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.checkpoints.loading import add_trust_option
from pelk_mm.engine.launch import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a classifier, segmentor or detector, a file or TOOLBOX::NAME')
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint; by default the weights are random')
    parser.add_argument('--channels', type=int, default=3, help='kernels of single channels to draw, default 3')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/kernels'), help='folder to write to')
    parser.add_argument('--seed', type=int, default=0, help='of random weights')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings of the config, key=value')
    add_trust_option(parser)
    args = parser.parse_args()
    if args.channels < 1:
        parser.error(f'--channels must be positive, got {args.channels}')
    return args


def main() -> None:
    args = parse_args()
    figure_files = {name: args.out / f'{name}.png' for name in ('kernels', 'grids')}
    numbers = args.out / 'kernels.json'
    refuse_existing(*figure_files.values(), numbers)
    model = build_with_weights(load_config(args.config, args.cfg_options), args.checkpoint, seed=args.seed)
    stages = collect_kernels(model)
    summaries = [stage.summary() for stage in stages]
    save_json(dict(config=args.config, checkpoint=args.checkpoint, stages=summaries), numbers)
    save_figure(draw_kernels(stages, args.channels), figure_files['kernels'])
    grids = dict.fromkeys(stage.layers[0].grid for stage in stages if stage.layers[0].grid is not None)
    if grids:
        save_figure(draw_sharing_grids(list(grids)), figure_files['grids'])
    for summary in summaries:
        height, width = summary['kernel_size']
        rings = summary['rms_by_distance']
        print(f'{summary["name"]}: {height} x {width}, {summary["parameters_per_channel"]} parameters a channel, '
              f'{len(summary["layers"])} layers, rms {rings[0]:.3g} at the centre, {rings[-1]:.3g} at the border')
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
