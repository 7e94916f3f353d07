"""Convert the checkpoints of other code bases: rename their tensors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

from torch import Tensor

from ..module_names import clean_name
from .atomic import atomic_save, refuse_existing
from .entries import add_weights_option, check_choice, find_weights, named_tensors
from .loading import add_trust_option, safe_load

# Regular expressions of complete names, and their replacements. A segmentor or detector has the backbone's names behind
# ``backbone.``, a classifier has them bare.
_COMMON_NAMES = {
    r'(?:backbone\.)?(downsample_layers\..+)': r'backbone.\1',
    r'backbone\.(norm\d\..+)': r'backbone.\1',
    r'norm\.(.+)': r'backbone.norm3.\1',
    r'head\.(weight|bias)': r'head.fc.\1',
    r'((?:decode_head|auxiliary_head|neck|rpn_head|roi_head)\..+)': r'\1',
}

# The release of SLaK, https://github.com/VITA-Group/SLaK, to SLaK here, in mmpretrain, mmseg or mmdet.
SLAK_NAMES = {
    **_COMMON_NAMES,
    **{
        rf'(?:backbone\.)?stages\.(\d+)\.(\d+)\.large_kernel\.{branch}\.{layer}\.(.+)':
        rf'backbone.stages.\1.blocks.\2.mixer.{layers}.{name}.\3'
        for branch, name in dict(LoRA1='vertical', LoRA2='horizontal', small_conv='small').items()
        for layer, layers in dict(conv='convs', bn='norms').items()
    },
    r'(?:backbone\.)?stages\.(\d+)\.(\d+)\.pwconv([12])\.(.+)': r'backbone.stages.\1.blocks.\2.pointwise_conv\3.\4',
    r'(?:backbone\.)?stages\.(\d+)\.(\d+)\.(norm\..+|gamma)': r'backbone.stages.\1.blocks.\2.\3',
}

# The release of ConvNeXt, https://github.com/facebookresearch/ConvNeXt, to mmpretrain's ConvNeXt.
CONVNEXT_NAMES = {
    **_COMMON_NAMES,
    r'(?:backbone\.)?stages\.(\d+)\.(\d+)\.dwconv\.(.+)': r'backbone.stages.\1.\2.depthwise_conv.\3',
    r'(?:backbone\.)?stages\.(\d+)\.(\d+)\.pwconv([12])\.(.+)': r'backbone.stages.\1.\2.pointwise_conv\3.\4',
    r'(?:backbone\.)?stages\.(\d+)\.(\d+)\.(norm\..+|gamma)': r'backbone.stages.\1.\2.\3',
}

# A classifier of ours or mmpretrain's to only its backbone.
BACKBONE_NAMES = {r'(?:module\.)?backbone\.(.+)': r'\1'}


def convert_main(description: str | None, names: Mapping[str, str], source_help: str) -> str:
    """Run the command line of a converter by :func:`convert_file`.

    Returns:
        str: The target, and line by line the tensors that were left out.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('source', help=source_help)
    parser.add_argument('target', help='file to write; it must not exist')
    parser.add_argument(
        '--key',
        help='entry that holds the weights, e.g. model_ema; by default state_dict, else model, else the '
        'checkpoint itself, and of a checkpoint with EMA the raw weights')
    add_weights_option(parser, 'the raw ones, which other trainings start from')
    add_trust_option(parser)
    args = parser.parse_args()
    try:
        check_choice(args.weights, args.key, '--')
    except ValueError as error:
        parser.error(str(error))
    converted, unmatched = convert_file(args.source, args.target, names, args.key, args.weights)
    return '\n'.join(
        [f'{converted} tensors written to {args.target}', *(f'not converted, left out: {name}' for name in unmatched)])


def convert_file(source: str,
                 target: str,
                 names: Mapping[str, str],
                 key: str | None = None,
                 weights: str | None = None) -> tuple[int, list[str]]:
    """Rename the tensors of a checkpoint and save them as ``dict(state_dict=...)``.

    Args:
        source (str): Path or URL.
        target (str): File to write; it must not exist.
        names (Mapping[str, str]): :data:`SLAK_NAMES`, :data:`CONVNEXT_NAMES` or :data:`BACKBONE_NAMES`.
        key (str, optional): Entry of the checkpoint that holds the tensors, which ``weights`` chooses by default.
        weights (str, optional): ``'raw'`` or ``'averaged'``; by default raw, see
            :func:`pelk_mm.checkpoints.entries.find_weights`.

    Returns:
        tuple[int, list[str]]: How many tensors were written, and the names that nothing matched, which were not.

    Raises:
        FileExistsError: If ``target`` exists.
        ValueError: If the checkpoint has no ``key``, or nothing in it matches.
    """
    refuse_existing(target)
    tensors = named_tensors(find_weights(safe_load(source), weights, source, key)[0])
    converted, unmatched = rename(tensors, names)
    if not converted:
        raise ValueError(f'no name in {source} matches; its first are {list(tensors)[:3]}')
    atomic_save(dict(state_dict=converted), target)
    return len(converted), unmatched


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename tensors by the first regular expression that matches their complete name.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The renamed tensors, and the names that nothing matched.

    Raises:
        ValueError: If two names become the same.
    """
    converted: dict[str, Tensor] = {}
    unmatched = []
    for name, tensor in tensors.items():
        short = clean_name(name)
        match = next((found for pattern in names if (found := re.fullmatch(pattern, short))), None)
        if match is None:
            unmatched.append(name)
            continue
        new = match.expand(names[match.re.pattern])
        if new in converted:
            raise ValueError(f'two tensors would become {new}, one of them is {name}')
        converted[new] = tensor
    return converted, unmatched
