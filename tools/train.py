"""Train a classifier, segmentor or detector from a config."""

import argparse

from torch.distributed.elastic.multiprocessing.errors import record

from pelk_mm.engine.launch import configure_training, load_config, parse_common_args, run


# For torchrun to print the error of the process that failed first.
@record
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value, from the latest of the work directory, if there is one')
    parser.add_argument('--amp', action='store_true', help='train in automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate to the batch size, from the config's auto_scale_lr.base_batch_size")
    args = parse_common_args(parser)
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    configure_training(cfg, resume=args.resume, amp=args.amp, auto_scale_lr=args.auto_scale_lr)
    run(cfg, 'train', args.launcher)


if __name__ == '__main__':
    main()
