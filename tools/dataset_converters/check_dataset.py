"""Check that a data set is complete and where the configs expect it, and say where to get what is missing.

``images`` opens every image in and under a folder, of any data set, and names those that are damaged.
"""

import argparse
import sys
from pathlib import Path

from pelk_mm.datasets.check import CHECKS


def main() -> int:
    """Return 1 when something is missing or wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('dataset', choices=CHECKS)
    parser.add_argument('--root', type=Path, help='folder of the data set (default: the one the configs name)')
    args = parser.parse_args()
    check, default_root = CHECKS[args.dataset]
    items = check(args.root or Path(default_root))
    for item in items:
        if item.problem:
            print(f'[WRONG] {item.path}: {item.found}; {item.problem}\n        -> {item.advice}')
        else:
            print(f'[ok]    {item.path}: {item.found}')
    wrong = sum(bool(item.problem) for item in items)
    print(f'{args.dataset}: ' + (f'{wrong} of {len(items)} parts are missing or wrong.' if wrong else 'complete.'))
    return int(wrong > 0)


if __name__ == '__main__':
    sys.exit(main())
