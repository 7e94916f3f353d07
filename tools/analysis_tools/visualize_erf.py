"""Measure and draw effective receptive fields of one or several models, by RepLKNet's method.

Writes erf.png and erf.json into a folder. The area ratio r at a threshold t is the share of the input that the smallest
centred square covers which holds the share t of all scores, log10(1 + contribution).
"""

import argparse
from pathlib import Path

import torch
from mmengine.config import DictAction

from pelk_mm.analysis import build_with_weights
from pelk_mm.analysis.erf import THRESHOLDS, draw_receptive_fields, find_images, load_images, measure_receptive_field
from pelk_mm.analysis.figures import save_figure, save_json
from pelk_mm.analysis.inputs import count_channels
from pelk_mm.analysis.text_tables import to_columns
from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.checkpoints.loading import add_trust_option
from pelk_mm.deploy import image_loader
from pelk_mm.engine.launch import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs', nargs='+', help='configs of classifiers, segmentors or detectors, files or TOOLBOX::NAME')
    parser.add_argument('--images', type=Path, required=True, metavar='FOLDER', help='images, in subfolders too')
    parser.add_argument(
        '--checkpoints',
        nargs='+',
        metavar='FILE',
        help='one checkpoint for each config, "none" for random weights; by default all have random weights')
    parser.add_argument('--names', nargs='+', help="what to call the models; by default the configs' names")
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=size,
        default=[(1024, 1024)],
        metavar='SIZE',
        help='sizes of the input, 512 or 512x1024 (height x width); default 1024, as published. An odd multiple of the '
        "backbone's stride puts the centre of the map into the centre of the input")
    parser.add_argument('--num-images', type=int, default=50, help='images to average over, default 50')
    parser.add_argument(
        '--first-images',
        action='store_true',
        help="take the first images in the order of names, as RepLKNet's authors do, instead of evenly spaced ones")
    parser.add_argument(
        '--before-norm',
        action='store_true',
        help="measure the feature map before a norm that the backbone ends with, as RepLKNet's authors do")
    parser.add_argument('--out', type=Path, default=Path('work_dirs/erf'), help='folder to write to')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--seed', type=int, default=0, help='of random weights')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings of every config, key=value')
    add_trust_option(parser)
    args = parser.parse_args()
    defaults = dict(checkpoints=['none'] * len(args.configs), names=[Path(config).stem for config in args.configs])
    for name, default in defaults.items():
        values = getattr(args, name) or default
        if len(values) != len(args.configs):
            parser.error(f'--{name} needs one for each of the {len(args.configs)} configs, got {len(values)}')
        setattr(args, name, values)
    args.checkpoints = [None if checkpoint == 'none' else checkpoint for checkpoint in args.checkpoints]
    return args


def size(text: str) -> tuple[int, int]:
    """Parse ``512`` or ``512x1024`` as height and width."""
    sides = [int(side) for side in text.lower().split('x')]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError
    return sides[0], sides[-1]


def main() -> None:
    args = parse_args()
    figure_file, numbers = args.out / 'erf.png', args.out / 'erf.json'
    refuse_existing(figure_file, numbers)
    paths = find_images(args.images, args.num_images, args.first_images)
    if len(paths) < args.num_images:
        print(f'{args.images} has {len(paths)} images: all of them are used')
    columns, results = [], []
    lines = [['area ratio r in % at t', 'input', *(f'{100 * threshold:g} %' for threshold in THRESHOLDS)]]
    for name, config, checkpoint in zip(args.names, args.configs, args.checkpoints):
        cfg = load_config(config, args.cfg_options)
        model = build_with_weights(cfg, checkpoint, args.device, args.seed)
        # Others load colours.
        load = image_loader(cfg) if count_channels(model) != 3 and cfg.get('test_dataloader') else None
        fields = [
            measure_receptive_field(model, load_images(paths, shape, model, load),
                                    f'{name}, {shape[0]} x {shape[1]}', len(paths), args.before_norm)
            for shape in args.sizes
        ]
        columns.append(fields)
        sizes = []
        for shape, field in zip(args.sizes, fields):
            regions, linear = ([vars(region) for region in found()] for found in (field.regions, field.linear_regions))
            sizes.append(dict(shape=shape, feature_shape=field.feature_shape, regions=regions, linear_regions=linear))
            ratios = [f'{100 * region["ratio"]:.3f}' for region in regions]
            lines.append([name, f'{shape[0]} x {shape[1]}', *ratios])
        results.append(dict(name=name, config=config, checkpoint=checkpoint, sizes=sizes))
    settings = {name: getattr(args, name) for name in ('first_images', 'before_norm', 'seed')}
    save_json(dict(num_images=len(paths), images=str(args.images), **settings, options=args.cfg_options,
                   models=results), numbers)
    save_figure(draw_receptive_fields(list(zip(*columns)), args.names), figure_file)
    print(to_columns(lines))
    print(f'written: {figure_file}, {numbers}')


if __name__ == '__main__':
    main()
