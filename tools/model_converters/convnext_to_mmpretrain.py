"""Bring a checkpoint released by ConvNeXt's authors to the names of mmpretrain's ConvNeXt."""

import argparse

from pelk_mm.engine.checkpoints import CONVNEXT_NAMES, add_trust_option, convert_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint of a classifier, segmentor or detector, file or URL')
    parser.add_argument('target', help='file to write; it must not exist')
    parser.add_argument(
        '--key',
        help='entry that holds the weights, e.g. model_ema; by default state_dict, else model, else the '
        'checkpoint itself')
    add_trust_option(parser)
    args = parser.parse_args()
    converted, unmatched = convert_file(args.source, args.target, CONVNEXT_NAMES, args.key)
    print(f'{converted} tensors written to {args.target}')
    for name in unmatched:
        print(f'not converted, left out: {name}')


if __name__ == '__main__':
    main()
