"""Export a model as ONNX and as a torch.export package, for any batch and image size, and check both against PyTorch.

Of a classifier or a segmentor the network up to its logits is exported, of a detector the backbone. Branches are merged
first. The exit code is 1 if an output, or a final prediction, differs by more than the tolerance.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import DictAction

from pelk_mm.analysis.figures import save_json
from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.checkpoints.entries import add_weights_option
from pelk_mm.checkpoints.loading import add_trust_option
from pelk_mm.deploy import (
    EvalImages,
    ImageModel,
    OnnxModel,
    capture,
    deploy,
    describe,
    load_trained,
    open_exported,
    save_onnx,
    save_package,
    stack_images,
    task_of,
    verify_outputs,
    verify_predictions,
)
from pelk_mm.deploy.verify import TIES
from pelk_mm.engine.launch import load_config
from pelk_mm.testing.benchmark import environment, time_paired

ABOVE = '  above the tolerance'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config, of the trained or of the deployed form')
    parser.add_argument('checkpoint', help='its checkpoint, file or URL')
    parser.add_argument(
        'out', type=Path, help='ONNX file to write, .onnx; the package goes beside it, .pt2. Neither must exist')
    parser.add_argument(
        '--form',
        choices=['fast', 'dense', 'both'],
        default='fast',
        help='what a peripheral convolution becomes: fast (default), box sums and a matrix product; dense, a depthwise '
        'convolution with the expanded kernel; both writes the dense one to OUT-dense too, to compare')
    parser.add_argument('--images', help="folder of images to compare on; by default the config's test dataset")
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='first size to check and the one to time, at least 64; by default that of the first image in the test '
        'pipeline. The second is five quarters as high and three halves as wide')
    parser.add_argument('--tolerance', type=float, default=1e-3, help='largest relative difference, default 1e-3')
    parser.add_argument(
        '--timing-seconds',
        type=float,
        default=60,
        metavar='S',
        help='time the files against PyTorch for about so long at most, default 60; 0 does not time them')
    parser.add_argument('--json', type=Path, metavar='FILE', help='new file for sizes, differences and latencies')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override values of the config')
    add_weights_option(parser, 'the averaged ones')
    add_trust_option(parser)
    args = parser.parse_args()
    if args.out.suffix != '.onnx':
        parser.error(f'out must end with .onnx, got {args.out}')
    forms = ('fast', 'dense') if args.form == 'both' else (args.form, )
    args.files = dict(zip(forms, (args.out, args.out.with_stem(f'{args.out.stem}-dense'))))
    written = [file.with_suffix(suffix) for file in args.files.values() for suffix in ('.onnx', '.pt2')]
    try:
        refuse_existing(*written, *filter(None, [args.json]))
    except FileExistsError as error:
        parser.error(str(error))
    if args.shape and min(args.shape) < 64:
        parser.error(f'--shape: sides must be at least 64, got {args.shape[0]} x {args.shape[1]}')
    return args


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    images = EvalImages(cfg, 2, args.images)
    model, meta = load_trained(cfg, args.checkpoint, args.weights)
    if hasattr(model.backbone, 'switch_to_deploy') and not cfg.model.backbone.get('deploy'):
        model = deploy(model, cfg).model
    task = task_of(cfg)
    reference = ImageModel(model, task).eval()
    inputs = make_inputs(images, args.shape, reference.channels)
    print_window(model)

    numbers, runs = [], {'PyTorch': lambda x: reference(torch.from_numpy(x))}
    for form, file in args.files.items():
        package = file.with_suffix('.pt2')
        program = capture(ImageModel(model, task, form))
        save_onnx(program, file, reference.output_names(), describe(cfg, meta, reference.channels))
        save_package(program, package)
        for path in (file, package):
            exported, size = open_exported(path), path.stat().st_size
            agreements = verify_outputs(reference, exported, inputs)
            print(f'{path}: {form} form, {size / 1e6:.2f} MB')
            for each in agreements:
                print(f'    {"x".join(map(str, each.shape)):>14}  {each.output:7}  max difference {each.maximum:.2e}, '
                      f'relative {each.relative:.2e}{"" if each.relative <= args.tolerance else ABOVE}')
            predictions = verify_predictions(model, task, exported, images.batches())
            wrong = not predictions.has_instances and not predictions.error <= max(args.tolerance, TIES)
            print(f'    {predictions}{ABOVE if wrong else ""}')
            equal = not wrong and all(each.relative <= args.tolerance for each in agreements)
            numbers.append(dict(file=str(path), form=form, bytes=size, agreements=[vars(each) for each in agreements],
                                **predictions.to_dict(), equal=equal))
        runs[f'onnxruntime, {form} form'] = OnnxModel(file, torch.get_num_threads()).run
    times = {}
    if args.timing_seconds > 0:
        print(f'timing for about {args.timing_seconds:g} s at most (--timing-seconds) ...', flush=True)
        times = time_paired(runs, inputs[:1], 'cpu', limit=args.timing_seconds)
        print(f'latency of {"x".join(map(str, inputs[0].shape))} on {torch.get_num_threads()} CPU threads:')
        for name, time in times.items():
            print(f'    {name:26} {1e3 * time.median:8.2f} ms ({1e3 * time.low:.2f} ... {1e3 * time.high:.2f})')
    if args.json is not None:
        latency = dict(shape=inputs[0].shape, seconds={name: vars(time) for name, time in times.items()})
        save_json(dict(config=args.config, checkpoint=args.checkpoint, environment=environment('cpu'), files=numbers,
                       latency=latency), args.json)
    if not all(entry['equal'] for entry in numbers):
        sys.exit(f'NOT equal within {args.tolerance:g}')


def make_inputs(images: EvalImages, shape: list[int] | None, channels: int) -> list[np.ndarray]:
    """One image at the first size, all of them at the second, as exported models take them."""
    height, width = shape or next(images.batches())['inputs'][0].shape[-2:]
    if min(height, width) < 64:
        raise ValueError(f'--shape: sides must be at least 64, got {height} x {width} of the test pipeline')
    loaded = list(images.arrays())
    first, second = (height, width), (height * 5 // 4, width * 3 // 2)
    return [stack_images(loaded[:1], first, channels), stack_images(loaded, second, channels)]


def print_window(model: Any) -> None:
    """Say what the graph computes of a model that slides a window over the image."""
    test_cfg = getattr(model, 'test_cfg', None) or {}
    if test_cfg.get('mode') == 'slide':
        print(f"test_cfg.mode='slide': the files compute one window of any size. OnnxModel and image_demo.py slide it "
              f'as in testing, crop_size {tuple(test_cfg["crop_size"])} and stride {tuple(test_cfg["stride"])}; any '
              'other runtime has to do the same, or predicts from the image at once, which gives other results.')


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
