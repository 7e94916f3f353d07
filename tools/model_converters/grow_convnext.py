"""Grow a pretrained ConvNeXt, V1 or V2, into a pelk_mm.PeLK of larger kernels, and prove that it computes the same.

The checkpoint may be a classifier's, a segmentor's, a detector's or only a backbone's, with the names of
facebookresearch, timm, torchvision, mmpretrain or transformers. The exit code is 1, and nothing is written, if a stage
differs by more than the tolerance.
"""

import argparse
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pelk_mm.checkpoints.atomic import atomic_save, refuse_existing
from pelk_mm.checkpoints.entries import add_weights_option, check_choice, find_weights, named_tensors
from pelk_mm.checkpoints.loading import add_trust_option, safe_load
from pelk_mm.layers import PeripheralConv2d, ReparamDepthwiseConv
from pelk_mm.nets import PeLK, compare_features, convnext_state_dict, grow_convnext, grown_state_dict
from pelk_mm.nets.weight_files import read_weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint with a ConvNeXt: .pth, .safetensors, or a URL')
    parser.add_argument('target', help='file to write; it must not exist')
    parser.add_argument(
        '--kernel-sizes', type=int, nargs='+', default=[51, 49, 47, 13], metavar='K', help='default 51 49 47 13')
    parser.add_argument(
        '--center', type=int, default=7, help="side of the centre, default 7; it grows to the source's kernel")
    parser.add_argument('--base', type=int, default=2, help='growth of the cells outside the centre, default 2')
    parser.add_argument(
        '--position-embedding', action='store_true', help='add the positional embedding, which starts at zero')
    parser.add_argument('--prefix', help="what precedes the ConvNeXt's names; found by default")
    parser.add_argument('--key', help='entry that holds the weights, e.g. model_ema, in place of --weights')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=[224, 224], metavar=('H', 'W'), help='of the images, default 224 224')
    parser.add_argument('--tolerance', type=float, default=1e-4, help='largest relative difference, default 1e-4')
    add_weights_option(parser, 'the raw ones, which other trainings start from')
    add_trust_option(parser)
    args = parser.parse_args()
    try:
        check_choice(args.weights, args.key, '--')
        refuse_existing(args.target)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse_args()
    content = read_weights(args.source) if args.source.endswith('.safetensors') else safe_load(args.source)
    tensors = named_tensors(find_weights(content, args.weights, args.source, args.key)[0])
    weights = convnext_state_dict(tensors, args.prefix)
    stages = range(len(weights.arch['depths']))
    # Norms that the source does not have start as the config builds them, and are not written.
    warnings.filterwarnings('ignore', message='the source has no norm')
    options = dict(prefix=args.prefix, out_indices=list(stages), gap_before_final_norm=False)
    net = grow_convnext(tensors, args.kernel_sizes, center=args.center, base=args.base,
                        position_embedding=args.position_embedding, **options).eval()
    side = max(7, *weights.arch['kernel_sizes'])
    dense = as_dense(grow_convnext(tensors, [side] * len(stages), **options).eval())
    images = make_images(weights.arch['in_channels'], args.shape)
    differences = compare_features(dense, net, images)
    print(f'{len(tensors)} tensors with the names of {weights.naming}: {len(weights.backbone)} of the backbone, '
          f'{len(weights.head)} outside')
    for stage, difference in enumerate(differences):
        print(f'stage {stage + 1}: K = {weights.arch["kernel_sizes"][stage]} -> {net.grids[stage].kernel_size}, '
              f'{net.grids[stage].num_cells**2} parameters a channel, largest relative difference {difference:.1e}')
    if not max(differences) <= args.tolerance:
        print(f'NOT equal within {args.tolerance:g}. Nothing is written.')
        sys.exit(1)
    state, fresh = grown_state_dict(net, weights.backbone)
    grown = {f'backbone.{name}': value for name, value in state.items() if name.partition('.')[0] not in fresh}
    # A last layer behind a hidden one is no classifier of the features, and mmpretrain's head would take it for one.
    hidden = any(name.startswith('head.pre_logits.') for name in weights.head)
    kept = {name: value for name, value in weights.head.items() if not (hidden and name.startswith('head.'))}
    grown.update(kept)
    atomic_save(dict(meta=dict(grown_from=Path(args.source).name), state_dict=grown), args.target)
    print(f'{len(grown)} tensors written to {args.target}')
    if fresh:
        print(f'not in the source, and not written: {", ".join(fresh)}')
    for name in weights.head:
        print(f'outside the backbone, {"kept" if name in kept else "left out (the head has a hidden layer)"}: {name}')
    print(f'backbone: {describe(net, weights.arch, args)}')


def as_dense(net: PeLK) -> PeLK:
    """Put PyTorch's own convolution in the place of every peripheral one, whose grid must be dense."""
    for module in net.modules():
        if isinstance(module, ReparamDepthwiseConv):
            large = module.convs['large']
            assert isinstance(large, PeripheralConv2d), type(large)
            side = large.grid.kernel_size
            conv = nn.Conv2d(large.channels, large.channels, side, padding=side // 2, groups=large.channels)
            conv.load_state_dict(large.state_dict())
            module.convs['large'] = conv
    return net


def make_images(channels: int, shape: list[int]) -> Tensor:
    """Return two normalised images: scikit-learn's photographs, or random numbers where they do not serve."""
    height, width = shape
    if channels != 3 or not find_spec('sklearn'):
        return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    from pelk_mm.datasets.digit_rendering import load_photographs
    pixels = [np.asarray(photo.resize((width, height))) / 255 for photo in load_photographs()['train']]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images - mean) / std


def describe(net: PeLK, arch: dict, args: argparse.Namespace) -> str:
    """Return the backbone of a config that loads the result."""
    settings = dict(
        type='pelk_mm.PeLK',
        arch=dict(depths=arch['depths'], channels=arch['channels'], kernel_sizes=tuple(args.kernel_sizes),
                  center=net.grids[0].center),
        base=args.base, conv_ratio=1.0, width_factor=1.0, small_kernel=None, branch_norm_cfg=None,
        position_embedding=args.position_embedding, ffn_ratio=arch['ffn_ratio'], use_grn=arch['use_grn'],
        layer_scale_init_value=arch['layer_scale_init_value'], in_channels=arch['in_channels'])
    if arch['norm_before_pooling']:
        # Its classifier averages the output, which a neck of mmpretrain does: GlobalAveragePooling.
        settings['gap_before_final_norm'] = False
    return f'dict({", ".join(f"{name}={value!r}" for name, value in settings.items())})'


if __name__ == '__main__':
    main()
