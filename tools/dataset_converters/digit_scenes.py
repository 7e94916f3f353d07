"""Make digit_scenes, the built-in data for classification, semantic and instance segmentation."""

import argparse
from pathlib import Path

from pelk_mm.datasets import make_digit_scenes

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/digit_scenes'), help='folder to make')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything random')
    parser.add_argument('--num-cls-train', type=int, default=5000, help='images to train classification')
    parser.add_argument('--num-cls-val', type=int, default=700, help='images to validate classification')
    parser.add_argument('--num-scenes-train', type=int, default=500, help='scenes to train segmentation and detection')
    parser.add_argument('--num-scenes-val', type=int, default=100, help='scenes to validate both')
    parser.add_argument('--cls-size', type=int, default=64, help='side of the classification images in pixels')
    parser.add_argument('--scene-size', type=int, default=128, help='side of the scenes in pixels')
    parser.add_argument(
        '--digits-per-scene', type=int, nargs=2, default=(3, 7), metavar=('FEWEST', 'MOST'), help='digits in a scene')
    parser.add_argument('--val-fraction', type=float, default=0.2, help='share of the digits kept for validation')
    args = vars(parser.parse_args())
    make_digit_scenes(args.pop('out'), **args)
