"""Extract COCO 2017, as mmdet reads it.

Can be stopped and started again; nothing that is there is overwritten.
"""

import argparse
from pathlib import Path

from pelk_mm.datasets.prepare import prepare_coco

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'archives',
        type=Path,
        help='folder with train2017.zip, val2017.zip, annotations_trainval2017.zip; or one of them')
    parser.add_argument('--out', type=Path, default=Path('data/coco'), help='folder to extract to')
    args = parser.parse_args()
    prepare_coco(args.archives, args.out)
