"""Export a model as ONNX and as a torch.export package, for any batch and image size, and check both against PyTorch.

A classifier or a segmentor is exported whole, of a detector the backbone. Branches are merged first. The exit code is
1 if an output differs by more than the tolerance.
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import DictAction

from pelk_mm.analysis.figures import save_json
from pelk_mm.deploy import (
    ImageModel,
    OnnxModel,
    TestImages,
    capture,
    deploy,
    describe,
    load_trained,
    save_onnx,
    save_package,
    stack_images,
    task_of,
    verify_onnx,
    verify_package,
)
from pelk_mm.engine.checkpoints import add_trust_option
from pelk_mm.engine.launch import load_config
from pelk_mm.testing.benchmark import environment, time_paired


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config, of the trained or of the deployed form')
    parser.add_argument('checkpoint', help='its checkpoint, file or URL')
    parser.add_argument('out', help='ONNX file to write, .onnx; the package goes beside it, .pt2. Neither must exist')
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
    parser.add_argument('--json', type=Path, metavar='FILE', help='new file for sizes, differences and latencies')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override values of the config')
    add_trust_option(parser)
    args = parser.parse_args()
    out = Path(args.out)
    if out.suffix != '.onnx':
        parser.error(f'out must end with .onnx, got {out}')
    forms = ('fast', 'dense') if args.form == 'both' else (args.form, )
    files = {form: out if form == forms[0] else out.with_stem(f'{out.stem}-dense') for form in forms}
    written = [file.with_suffix(suffix) for file in files.values() for suffix in ('.onnx', '.pt2')]
    for path in (*written, *filter(None, [args.json])):
        if path.exists():
            parser.error(f'{path} exists and is not overwritten: choose another name')

    cfg = load_config(args.config, args.cfg_options)
    images = TestImages(cfg, 2, args.images)
    model, meta = load_trained(cfg, args.checkpoint)
    if hasattr(model.backbone, 'switch_to_deploy') and not cfg.model.backbone.get('deploy'):
        model = deploy(model, cfg).model
    height, width = args.shape or next(images.batches())['inputs'][0].shape[-2:]
    if min(height, width) < 64:
        parser.error(f'--shape: sides must be at least 64, got {height} x {width}')
    sizes = ((height, width), (height * 5 // 4, width * 3 // 2))
    pictures = list(images.arrays())
    inputs = [stack_images(pictures[:count], size) for count, size in zip((1, len(pictures)), sizes)]

    reference = ImageModel(model, task_of(cfg)).eval()
    agreed, numbers, runs = True, [], {'PyTorch': lambda x: reference(torch.from_numpy(x))}
    for form, file in files.items():
        program = capture(ImageModel(model, task_of(cfg), form))
        save_onnx(program, file, reference.output_names(), describe(cfg, meta))
        save_package(program, file.with_suffix('.pt2'))
        for path, verify in ((file, verify_onnx), (file.with_suffix('.pt2'), verify_package)):
            size, agreements = path.stat().st_size, verify(reference, path, inputs)
            print(f'{path}: {form} form, {size / 1e6:.2f} MB')
            numbers.append(dict(file=str(path), form=form, bytes=size, agreements=[vars(each) for each in agreements]))
            for agreement in agreements:
                bad = not agreement.relative <= args.tolerance
                agreed &= not bad
                print(f'    {"x".join(map(str, agreement.shape)):>14}  {agreement.output:7}  '
                      f'max difference {agreement.maximum:.2e}, relative {agreement.relative:.2e}'
                      f'{"  above the tolerance" if bad else ""}')
        runs[f'onnxruntime, {form} form'] = OnnxModel(file, torch.get_num_threads()).run
    print(f'latency of {"x".join(map(str, inputs[0].shape))} on {torch.get_num_threads()} CPU threads:')
    times = time_paired(runs, inputs[:1], 'cpu')
    for name, time in times.items():
        print(f'    {name:26} {1e3 * time.median:8.2f} ms ({1e3 * time.low:.2f} ... {1e3 * time.high:.2f})')
    if args.json is not None:
        latency = dict(shape=inputs[0].shape, seconds={name: vars(time) for name, time in times.items()})
        save_json(
            dict(
                config=args.config,
                checkpoint=args.checkpoint,
                environment=environment('cpu'),
                files=numbers,
                latency=latency), args.json)
    if not agreed:
        sys.exit(f'NOT equal within {args.tolerance:g}')


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
