"""Make a training checkpoint ready to publish: only weights and meta data, with a hash in the file name."""

import argparse

from pelk_mm.checkpoints.entries import add_weights_option
from pelk_mm.checkpoints.loading import add_trust_option
from pelk_mm.checkpoints.publish import publish_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint of a training run, file or URL')
    parser.add_argument('target', help='file to write; -<hash> is added to its name')
    add_weights_option(parser, 'the averaged ones')
    add_trust_option(parser)
    args = parser.parse_args()
    path, dropped, missing = publish_file(args.source, args.target, args.weights)
    print(f'{path} written, without {", ".join(dropped) or "leaving anything out"}')
    if missing:
        print(f'its meta data lacks {", ".join(missing)}, which MMEngine puts into the checkpoints of a training run')


if __name__ == '__main__':
    main()
