"""Export a model for any batch and image size, and check the files against PyTorch.

Either as ONNX and as a torch.export package, or for OpenVINO; in fp32, and on request in int8 too. Of a classifier or a
segmentor the network up to its logits is exported, of a detector the backbone. Branches are merged first. The exit code
is 1 if an output, or a final prediction, of a file in fp32 differs by more than the tolerance.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import DictAction

from pelk_mm.analysis.figures import save_json
from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.checkpoints.entries import add_weights_option
from pelk_mm.checkpoints.loading import add_trust_option
from pelk_mm.deploy import (
    Agreement,
    EvalImages,
    ExportedModel,
    ImageModel,
    Predictions,
    calibration_images,
    capture,
    deploy,
    describe,
    load_trained,
    open_exported,
    save_int8_onnx,
    save_onnx,
    save_openvino,
    save_package,
    stack_images,
    task_of,
    verify_outputs,
    verify_predictions,
)
from pelk_mm.deploy.verify import TIES
from pelk_mm.engine.launch import load_config
from pelk_mm.install_hints import require
from pelk_mm.testing.benchmark import Timing, environment, time_paired

ABOVE = '  above the tolerance'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config, of the trained or of the deployed form')
    parser.add_argument('checkpoint', help='its checkpoint, file or URL')
    parser.add_argument(
        'out', type=Path, help='file to write: ONNX, .onnx, the package goes beside it, .pt2; or OpenVINO, .xml, its '
        'weights go beside it, .bin. None of them must exist')
    parser.add_argument(
        '--form',
        choices=['fast', 'dense', 'both'],
        default='fast',
        help='what a peripheral convolution becomes: fast (default), box sums and a matrix product; dense, a depthwise '
        'convolution with the expanded kernel; both writes the dense one to OUT-dense too, to compare')
    parser.add_argument(
        '--int8',
        type=int,
        nargs='?',
        const=200,
        metavar='N',
        help='write OUT-int8 too, calibrated on N images (default 200), and compare its predictions on as many: it is '
        'not equal, so how far it agrees is printed, and the exit code does not depend on it')
    parser.add_argument(
        '--calibration', metavar='FOLDER', help="folder of images to calibrate on; by default the config's training "
        'data. They go through the test pipeline')
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
    check_args(parser, args)
    return args


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot be done, and add ``files``: form -> file."""
    if args.out.suffix not in ('.onnx', '.xml'):
        parser.error(f'out must end with .onnx or .xml, got {args.out}')
    if args.int8 is not None and args.int8 < 1:
        parser.error(f'--int8 must be at least 1, got {args.int8}')
    if args.calibration and args.int8 is None:
        parser.error('--calibration needs --int8')
    forms = ('fast', 'dense') if args.form == 'both' else (args.form, )
    args.files = dict(zip(forms, (args.out, args.out.with_stem(f'{args.out.stem}-dense'))))
    fp32 = [file.with_suffix(suffix) for file in args.files.values() for suffix in suffixes(file)]
    int8 = [int8_file(file) for file in args.files.values()] if args.int8 else []
    try:
        refuse_existing(*fp32, *int8, *filter(None, [args.json]))
    except FileExistsError as error:
        parser.error(str(error))
    if args.shape and min(args.shape) < 64:
        parser.error(f'--shape: sides must be at least 64, got {args.shape[0]} x {args.shape[1]}')


def suffixes(file: Path) -> tuple[str, str]:
    """Return the suffixes of the file and of the one that is written beside it."""
    return ('.onnx', '.pt2') if file.suffix == '.onnx' else ('.xml', '.bin')


def int8_file(file: Path) -> Path:
    return file.with_stem(f'{file.stem}-int8')


def main() -> None:
    args = parse_args()
    if args.out.suffix == '.xml':
        require('openvino', *(['nncf'] if args.int8 else []), by='export to OpenVINO')
    cfg = load_config(args.config, args.cfg_options)
    images = EvalImages(cfg, 2, args.images)
    # Before the work.
    calibration = calibration_images(cfg, args.int8, args.calibration) if args.int8 else None
    model, meta = load_trained(cfg, args.checkpoint, args.weights)
    if hasattr(model.backbone, 'switch_to_deploy') and not cfg.model.backbone.get('deploy'):
        model = deploy(model, cfg).model
    task = task_of(cfg)
    reference = ImageModel(model, task).eval()
    inputs = make_inputs(images, args.shape, reference.channels)
    print_window(model)

    numbers, runs = [], {'PyTorch': lambda x: reference(torch.from_numpy(x))}
    runtime = 'OpenVINO' if args.out.suffix == '.xml' else 'onnxruntime'
    for form, file in args.files.items():
        program = capture(ImageModel(model, task, form))
        for path in write_files(program, file, reference, describe(cfg, meta, reference.channels), calibration):
            exported = open_exported(path)
            entry = dict(file=str(path), form=form, precision='int8' if path == int8_file(file) else 'fp32',
                         bytes=file_size(path))
            print(f'{path}: {form} form, {entry["precision"]}, {entry["bytes"] / 1e6:.2f} MB')
            agreements = verify_outputs(reference, exported, inputs)
            if entry['precision'] == 'int8':
                others = EvalImages(cfg, args.int8, args.images)
                predictions = verify_predictions(model, task, exported, others.batches())
                print_agreement(agreements, predictions, task, len(calibration))
            else:
                predictions = verify_predictions(model, task, exported, images.batches())
                entry['equal'] = print_differences(agreements, predictions, args.tolerance)
            numbers.append(dict(entry, agreements=[vars(each) for each in agreements], **predictions.to_dict()))
            if exported.model is not None:
                name = f'{runtime}, {form} form' + (', int8' if entry['precision'] == 'int8' else '')
                runs[name] = ExportedModel(path, torch.get_num_threads(), shape=inputs[0].shape).run
    times = time_files(runs, inputs[:1], args.timing_seconds) if args.timing_seconds > 0 else {}
    if args.json is not None:
        latency = dict(shape=inputs[0].shape, seconds={name: vars(time) for name, time in times.items()})
        save_json(dict(config=args.config, checkpoint=args.checkpoint, environment=environment('cpu'), files=numbers,
                       latency=latency), args.json)
    if not all(entry.get('equal', True) for entry in numbers):
        sys.exit(f'NOT equal within {args.tolerance:g}')


def write_files(program: Any, file: Path, reference: ImageModel, meta: dict,
                calibration: EvalImages | None) -> list[Path]:
    """Write one form of the kernels, and return the files to check."""
    with TemporaryDirectory() as folder:
        source = file if file.suffix == '.onnx' else Path(folder) / 'model.onnx'
        save_onnx(program, source, reference.output_names(), meta)
        written = [file]
        if file.suffix == '.onnx':
            written.append(file.with_suffix('.pt2'))
            save_package(program, written[-1])
        else:
            save_openvino(source, file)
        if calibration is not None:
            written.append(int8_file(file))
            (save_int8_onnx if file.suffix == '.onnx' else save_openvino)(source, written[-1], calibration)
    return written


def file_size(path: Path) -> int:
    """Count the bytes of a file, of OpenVINO's with the weights beside it."""
    return sum(each.stat().st_size for each in (path, path.with_suffix('.bin'))[:1 + (path.suffix == '.xml')])


def print_differences(agreements: list[Agreement], predictions: Predictions, tolerance: float) -> bool:
    """Print how far a file is from PyTorch, and return whether it is equal within the tolerance."""
    for each in agreements:
        print(f'    {"x".join(map(str, each.shape)):>14}  {each.output:7}  max difference {each.maximum:.2e}, '
              f'relative {each.relative:.2e}{"" if each.relative <= tolerance else ABOVE}')
    wrong = not predictions.has_instances and not predictions.error <= max(tolerance, TIES)
    print(f'    {predictions}{ABOVE if wrong else ""}')
    return not wrong and all(each.relative <= tolerance for each in agreements)


def print_agreement(agreements: list[Agreement], predictions: Predictions, task: str, calibrated: int) -> None:
    """Print how far a file in int8 predicts the same."""
    print(f'    calibrated on {calibrated} images')
    for each in agreements:
        print(f'    {"x".join(map(str, each.shape)):>14}  {each.output:7}  rms difference {each.noise:.2%} of the rms')
    if task == 'classification':
        print(f'    {predictions.images_equal} of {predictions.images} images are predicted the same')
    elif task == 'segmentation':
        print(f'    {predictions.equal / predictions.decisions:.2%} of the pixels of {predictions.images} images are '
              'predicted the same')
    else:
        print(f'    {predictions}')


def time_files(runs: dict, inputs: list[np.ndarray], seconds: float) -> dict[str, Timing]:
    print(f'timing for about {seconds:g} s at most (--timing-seconds) ...', flush=True)
    times = time_paired(runs, inputs, 'cpu', limit=seconds)
    print(f'latency of {"x".join(map(str, inputs[0].shape))} on {torch.get_num_threads()} CPU threads:')
    for name, time in times.items():
        print(f'    {name:30} {1e3 * time.median:8.2f} ms ({1e3 * time.low:.2f} ... {1e3 * time.high:.2f})')
    return times


def make_inputs(images: EvalImages, shape: list[int] | None, channels: int) -> list[np.ndarray]:
    """Return one image at the first size, all of them at the second, as exported models take them."""
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
        print(f"test_cfg.mode='slide': the files compute one window of any size. ExportedModel and image_demo.py slide "
              f'it as in testing, crop_size {tuple(test_cfg["crop_size"])} and stride {tuple(test_cfg["stride"])}; any '
              'other runtime has to do the same, or predicts from the image at once, which gives other results.')


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
