"""Take the backbone out of a classifier's checkpoint, under the backbone's own names."""

import argparse

from pelk_mm.engine.checkpoints import BACKBONE_NAMES, add_trust_option, convert_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint of a classifier, file or URL')
    parser.add_argument('target', help='file to write; it must not exist')
    parser.add_argument(
        '--key',
        help='entry that holds the weights; by default state_dict, else model, else the '
        'checkpoint itself')
    add_trust_option(parser)
    args = parser.parse_args()
    converted, unmatched = convert_file(args.source, args.target, BACKBONE_NAMES, args.key)
    print(f'{converted} tensors written to {args.target}')
    for name in unmatched:
        print(f'not converted, left out: {name}')


if __name__ == '__main__':
    main()
