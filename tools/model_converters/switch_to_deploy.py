"""Merge the branches, norms and embedding of a trained model, prove that it computes the same, save it and its config.

The exit code is 1, and nothing is written, if an output differs by more than the tolerance, or if a merged layer did
not run on any of the images.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from mmengine.config import DictAction
from rich.progress import track

from pelk_mm.analysis.figures import save_json
from pelk_mm.analysis.text_tables import to_columns
from pelk_mm.checkpoints.atomic import refuse_existing
from pelk_mm.checkpoints.entries import add_weights_option
from pelk_mm.checkpoints.loading import add_trust_option
from pelk_mm.deploy import Difference, EvalImages, Predictions, compare, deploy, load_trained, save_deployment
from pelk_mm.deploy.verify import TIES
from pelk_mm.engine.launch import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the trained model')
    parser.add_argument('checkpoint', help='its checkpoint, file or URL')
    parser.add_argument(
        'out', type=Path, help='checkpoint to write, .pth; the config goes beside it, .py. Neither must exist')
    parser.add_argument('--images', help="folder of images to compare on; by default the config's test dataset")
    parser.add_argument('--num-images', type=int, default=8, help='number of images, default 8')
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-4,
        help='largest error allowed, as a share of the largest value of the same output; default 1e-4')
    parser.add_argument('--json', type=Path, metavar='FILE', help='new file for the errors as numbers, equal or not')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override values of the config')
    add_weights_option(parser, 'the averaged ones')
    add_trust_option(parser)
    args = parser.parse_args()
    try:
        refuse_existing(args.out, args.out.with_suffix('.py'), *filter(None, [args.json]))
    except FileExistsError as error:
        parser.error(str(error))
    if args.out.suffix != '.pth':
        parser.error(f'out must end with .pth, got {args.out}')
    return args


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    images = EvalImages(cfg, args.num_images, args.images)
    model, meta = load_trained(cfg, args.checkpoint, args.weights)
    deployment = deploy(model, cfg)
    print(f'{len(deployment.layers)} layers merged; {len(images)} images through both forms, in fp32')
    batches = track(images.batches(), 'Images', len(images))
    differences, predictions = compare(model, deployment.model, deployment.layers, batches)
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, deployment.model)]
    if args.json is not None:
        settings = dict(config=args.config, checkpoint=args.checkpoint, images=len(images), tolerance=args.tolerance)
        save_json(dict(settings, parameters=counts, differences=[each.to_dict() for each in differences],
                       **predictions.to_dict()), args.json)
    print_differences(differences, args.tolerance)
    print(predictions)
    if objection := object_to(differences, deployment.layers, predictions, args.tolerance):
        print(objection)
        sys.exit(1)
    save_deployment(deployment, meta, args.out)
    worst = worst_of(differences)
    print(f'equal within {args.tolerance:g} (worst: {worst.name}, {worst.relative:.2e}); '
          f'{counts[0] / 1e6:.3f} M parameters became {counts[1] / 1e6:.3f} M')
    print(f'written: {args.out}, {args.out.with_suffix(".py")}')


def print_differences(differences: Sequence[Difference], tolerance: float) -> None:
    lines = [('', 'input', 'max |y|', 'max error', 'mean error', 'relative', '')]
    for each in differences:
        lines.append((each.name, 'same' if each.alone else 'own', f'{each.magnitude:.3g}', f'{each.maximum:.2e}',
                      f'{each.mean:.2e}', f'{each.relative:.2e}',
                      '' if each.relative <= tolerance else 'above the tolerance'))
    print(to_columns(lines, num_text=2))


def object_to(differences: Sequence[Difference], layers: Iterable[str], predictions: Predictions,
              tolerance: float) -> str:
    """Return why the deployed form must not be written, '' if nothing speaks against it."""
    worst = worst_of(differences)
    if not worst.relative <= tolerance:
        return (f'NOT equal: {worst.name} differs by {worst.relative:.2e} of its largest value, more than '
                f'{tolerance:g}. Nothing is written.')
    unproven = sorted(set(layers) - {difference.name for difference in differences})
    if unproven:
        return f'NOT proven: nothing reached {", ".join(unproven)}. Choose other --images or more, --num-images.'
    # Predictions of detectors are left out: a tie may fall either way in NMS.
    if predictions.has_instances or predictions.error <= max(tolerance, TIES):
        return ''
    return f'NOT equal: {predictions}, more than {max(tolerance, TIES):g}. Nothing is written.'


def worst_of(differences: Sequence[Difference]) -> Difference:
    return max(differences, key=lambda difference: difference.relative)


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
