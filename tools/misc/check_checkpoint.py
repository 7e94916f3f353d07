"""Report the content of a checkpoint, and whether the model of a config can load it; exit code 1 for a problem.

Only tensors and plain values are loaded: a file that would run code is refused.
"""

import argparse
import sys

from mmengine.config import DictAction

from pelk_mm.diagnostics.checkpoint import examine_checkpoint
from pelk_mm.diagnostics.finding import has_error, to_text
from pelk_mm.engine.launch import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('config', nargs='?', help='config whose model is to load it')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override values of the config')
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options) if args.config else None
    findings = examine_checkpoint(args.checkpoint, cfg)
    print(to_text(findings))
    if has_error(findings):
        sys.exit(1)


if __name__ == '__main__':
    main()
