"""Count the parameters and the multiply-adds of a model, as papers count them, in total and by part.

Beside the multiply-adds in dense form stand the operations that are executed: see ``--backend``.
"""

import argparse
import json
from pathlib import Path

from mmengine.config import DictAction

from pelk_mm.analysis import build_model, count_complexity, default_shape
from pelk_mm.analysis.breakdown import draw_breakdown
from pelk_mm.analysis.figures import save_figure
from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.engine.launch import read_config
from pelk_mm.ops.peripheral_conv2d.backends import ALIASES
from pelk_mm.ops.peripheral_conv2d.operations import COUNTERS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a classifier, segmentor or detector, a file or TOOLBOX::NAME')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='size of the image; by default 512 2048 for segmentation, 800 1280 for detection, and for classification '
        'the size to which the pipeline brings images')
    parser.add_argument(
        '--density',
        type=float,
        default=1.0,
        help='share of non-zero weights in the backbone (and the head of a classifier); 0.6 in the PeLK paper')
    parser.add_argument(
        '--rois', type=int, default=1000, help='proposals through each box head of a two-stage detector')
    parser.add_argument(
        '--mask-rois',
        type=int,
        default=100,
        help='proposals through each mask head; 100, as MMDetection 2.x counted, gives the published figures, 1000 is '
        'what MMDetection 3.x counts for a cascade')
    parser.add_argument(
        '--training-form', action='store_true', help='count all parallel branches instead of merging them first')
    parser.add_argument(
        '--device', default='meta', help='where to run; cpu for models that read values and so cannot run on meta')
    parser.add_argument(
        '--backend',
        default='auto',
        choices=['auto', *COUNTERS, *ALIASES],
        help='backend of the peripheral convolution whose operations count as executed, available here or not; auto, '
        'the default, is the choice on a CPU')
    parser.add_argument('--json', action='store_true', help='print one JSON object instead of the table')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='draw the shares into a new image, .png or .svg')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings of the config, key=value')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.plot is not None:
        refuse_existing(args.plot)
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    complexity = count_complexity(
        build_model(cfg, args.device),
        args.shape or default_shape(cfg),
        density=args.density,
        num_rois=args.rois,
        num_mask_rois=args.mask_rois,
        deploy=not args.training_form,
        backend=args.backend)
    if args.plot is not None:
        save_figure(draw_breakdown(complexity), args.plot)
    if args.json:
        print(json.dumps(dict(config=args.config, **complexity.to_dict())))
    else:
        print(complexity.to_table())


if __name__ == '__main__':
    main()
