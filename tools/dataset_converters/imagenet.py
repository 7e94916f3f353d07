"""Extract ImageNet-1K and label its validation images, as mmpretrain reads it.

Can be stopped and started again; nothing that is there is overwritten.
"""

import argparse
from pathlib import Path

from pelk_mm.datasets.prepare import prepare_imagenet

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'archives',
        type=Path,
        help='folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz; or one of '
        'them')
    parser.add_argument('--out', type=Path, default=Path('data/imagenet'), help='folder to prepare')
    parser.add_argument(
        '--val-layout',
        choices=('meta', 'folders'),
        default='meta',
        help='label the validation images by meta/val.txt, or by class folders')
    args = parser.parse_args()
    prepare_imagenet(args.archives, args.out, args.val_layout)
