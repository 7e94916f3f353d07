"""Test a checkpoint of a classifier, segmentor or detector: metrics, predictions, images of them."""

import argparse

from torch.distributed.elastic.multiprocessing.errors import record

from pelk_mm.checkpoints.entries import add_weights_option
from pelk_mm.engine.launch import configure_testing, load_config, parse_common_args, run


# For torchrun to print the error of the process that failed first.
@record
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out', help='where to put the predictions: a .pkl file, or for mmseg a folder of label maps')
    parser.add_argument('--show', action='store_true', help='show the predictions in windows')
    parser.add_argument('--show-dir', help='folder for images with the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that each window stays')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="use the config's test-time augmentation; flipping where one for mmpretrain or mmdet has none")
    add_weights_option(parser, 'the averaged ones')
    args = parse_common_args(parser)
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    configure_testing(
        cfg, args.checkpoint, args.out, args.show, args.show_dir, args.wait_time, args.tta, args.weights)
    run(cfg, 'test', args.launcher)


if __name__ == '__main__':
    main()
