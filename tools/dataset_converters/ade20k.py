"""Extract ADE20K's scene parsing benchmark and check its label maps.

Can be stopped and started again; nothing that is there is overwritten.
"""

import argparse
from pathlib import Path

from pelk_mm.datasets.prepare import prepare_ade20k

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('archive', type=Path, help='ADEChallengeData2016.zip, or its folder')
    parser.add_argument('--out', type=Path, default=Path('data/ade'), help='folder to extract to')
    args = parser.parse_args()
    prepare_ade20k(args.archive, args.out)
