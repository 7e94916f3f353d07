"""Print a config with everything that it inherits, or save it as one file."""

import argparse
import os

from mmengine.config import DictAction

from pelk_mm.engine.launch import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config, a file or TOOLBOX::NAME')
    parser.add_argument('--save-path', help='also write it to this new file: .py, .yml or .json')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override values of the config')
    args = parser.parse_args()
    if args.save_path is not None:
        if not args.save_path.endswith(('.py', '.yml', '.yaml', '.json')):
            parser.error(f'--save-path must end with .py, .yml, .yaml or .json, got {args.save_path}')
        if os.path.exists(args.save_path):
            parser.error(f'--save-path: {args.save_path} exists')
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    print(cfg.pretty_text)
    if args.save_path is not None:
        cfg.dump(args.save_path)


if __name__ == '__main__':
    main()
