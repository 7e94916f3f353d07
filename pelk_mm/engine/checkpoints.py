"""Checkpoints of other code bases brought to the names used here, and checkpoints made ready to publish."""

from __future__ import annotations

import argparse
import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import get_local_path
from torch import Tensor

from .. import __version__, compat
from ..module_names import PRIVATE_PARTS, clean_name
from ..whole_files import refuse_existing, write_whole

# Regular expressions of whole names and what they become. A segmentor or detector has the backbone's names behind
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

# A classifier of ours or mmpretrain's to its backbone alone.
BACKBONE_NAMES = {r'(?:module\.)?backbone\.(.+)': r'\1'}

# The two sets of weights of training with EMA: as the optimiser left them, and their average.
WEIGHTS = ('raw', 'averaged')

# Entries that hold averaged weights beside raw ones, in checkpoints of SLaK's and ConvNeXt's code and of timm.
AVERAGED_ENTRIES = ('model_ema', 'state_dict_ema')

# What a published checkpoint keeps.
PUBLISHED = ('meta', 'state_dict')

# Without these entries of its meta data a published checkpoint does not tell what it is.
EXPECTED_META = ('cfg', 'dataset_meta', 'mmengine_version')


def safe_load(source: str, map_location: str = 'cpu'):
    """Load a checkpoint of any origin. Nothing in it is run: it is tensors, plain values and log history, or refused.

    Args:
        source (str): Path or URL.
        map_location (str): Where tensors are loaded to. Defaults to 'cpu'.

    Returns:
        Any: What was saved, mostly a dict.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else, or is no checkpoint.
    """
    with get_local_path(source) as path:
        return compat.load_safely(path, map_location, source)


def find_weights(content: Any,
                 weights: str | None = None,
                 source: str = 'the checkpoint') -> tuple[Mapping, str | None]:
    """Choose raw or averaged weights of a checkpoint by name, from wherever its code base puts them.

    MMEngine's EMAHook saves the averaged weights as ``state_dict`` and the raw ones as ``ema_state_dict``; other code
    saves the raw ones as ``state_dict`` or ``model``, and the averaged ones in one of :data:`AVERAGED_ENTRIES`. Where
    there is one set, it counts as raw, unless its meta data name it as averaged, as :func:`publish_file` does.

    Args:
        content (Any): What was loaded.
        weights (str, optional): ``'raw'`` or ``'averaged'``. None takes the raw ones of two sets, or the one set that
            there is. Defaults to None.
        source (str): What to call the checkpoint in an error.

    Returns:
        tuple[Mapping, str | None]: The weights by name, and the entry that held them, None for the content itself.

    Raises:
        ValueError: If ``weights`` has another value, or the checkpoint lacks what it names.
    """
    if weights not in (None, *WEIGHTS):
        raise ValueError(f'weights must be None or one of {WEIGHTS}, got {weights!r}')
    content = _entries(content, source)
    entry = next((name for name in ('state_dict', 'model') if isinstance(content.get(name), Mapping)), None)
    found: dict[str, tuple[Mapping, str | None]] = {}
    if saved_by_ema_hook(content):
        raw = {name.removeprefix('module.'): value for name, value in content['ema_state_dict'].items()}
        del raw['steps']
        found = dict(raw=(raw, 'ema_state_dict'), averaged=(content['state_dict'], 'state_dict'))
    else:
        meta = content.get('meta')
        kind = meta.get('weights') if isinstance(meta, Mapping) else None
        found[kind if kind in WEIGHTS else 'raw'] = (content if entry is None else content[entry], entry)
        averaged = next((name for name in AVERAGED_ENTRIES if isinstance(content.get(name), Mapping)), None)
        if averaged is not None:
            found['averaged'] = (content[averaged], averaged)
    if weights is not None and weights not in found:
        only, = found
        raise ValueError(f'weights={weights!r}, but {source} has one set of weights, which are {only}: '
                         + ('it was trained without EMAHook, or is no checkpoint of training' if only == 'raw' else
                            'the raw ones were left out when it was published or deployed'))
    return found[weights or next(kind for kind in WEIGHTS if kind in found)]


def saved_by_ema_hook(content: Mapping) -> bool:
    """Whether a checkpoint has the weights of MMEngine's EMAHook: averaged in ``state_dict``, raw beside it."""
    raw = content.get('ema_state_dict')
    return isinstance(raw, Mapping) and 'steps' in raw and isinstance(content.get('state_dict'), Mapping)


def add_weights_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--weights {raw,averaged}`` to a tool that loads checkpoints.

    Args:
        parser (argparse.ArgumentParser): The tool's.
        default (str): For the help, what is taken without the option.
    """
    parser.add_argument(
        '--weights',
        choices=WEIGHTS,
        help=f'weights to take of a checkpoint of training with EMA, which holds both; by default {default}')


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint FILE``, without which no checkpoint can run code, to a tool that loads checkpoints."""
    parser.add_argument(
        '--trust-checkpoint',
        action=_TrustCheckpoint,
        metavar='FILE',
        help='RUN whatever code is in this checkpoint, if it needs more than tensors and plain values. Only for a file '
        'whose author you know and trust')


class _TrustCheckpoint(argparse.Action):

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            compat.trust_checkpoint(values)
        except FileNotFoundError as error:
            parser.error(str(error))


def convert_main(description: str | None, names: Mapping[str, str], source_help: str) -> str:
    """The command line of a converter: parse the arguments, convert the file, and say what became of it.

    Args:
        description (str, optional): What the tool does, for its help.
        names (Mapping[str, str]): As :func:`convert_file` takes them.
        source_help (str): Of what the checkpoint is.

    Returns:
        str: What was written, and line by line what was left out.

    Raises:
        FileExistsError: If the file to write exists.
        ValueError: If the checkpoint has no such entry, or nothing in it matches.
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
    if args.key and args.weights:
        parser.error(f'--key names an entry and --weights finds it: give one, got {args.key} and {args.weights}')
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
        weights (str, optional): ``'raw'`` or ``'averaged'``; by default raw, see :func:`find_weights`.

    Returns:
        tuple[int, list[str]]: How many tensors were written, and the names that nothing matched, which were not.

    Raises:
        FileExistsError: If ``target`` exists.
        ValueError: If the checkpoint has no ``key``, or nothing in it matches.
    """
    refuse_existing(target)
    content = _entries(safe_load(source), source)
    if key is None:
        tensors = _named_tensors(find_weights(content, weights, source)[0])
    elif isinstance(content.get(key), Mapping):
        tensors = _named_tensors(content[key])
    else:
        found = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
        raise ValueError(f'key must be an entry of {source} that holds tensors by name, got {key!r}, there are '
                         f'{sorted(found)}')
    converted, unmatched = rename(tensors, names)
    if not converted:
        raise ValueError(f'no name in {source} matches; its first are {list(tensors)[:3]}')
    save_whole(dict(state_dict=converted), target)
    return len(converted), unmatched


def save_whole(content: Mapping[str, Any], path: str | Path) -> None:
    """``torch.save`` to a file that appears whole or not at all, in a folder that is made.

    Raises:
        OSError: If it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(buffer.getbuffer(), str(path))


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename tensors by the first pattern that matches the whole of their name.

    Args:
        tensors (Mapping[str, Tensor]): By name.
        names (Mapping[str, str]): Regular expressions and their replacements.

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


def load_weights_and_meta(source: str,
                          weights: str | None = None) -> tuple[Mapping[str, Any], dict[str, Any], list[str]]:
    """Load what MMEngine saves of a model: its weights, and what they are.

    Args:
        source (str): Path or URL.
        weights (str, optional): ``'raw'`` or ``'averaged'``; see :func:`find_weights`. By default the ``state_dict``,
            which holds the averaged ones where EMAHook was used.

    Returns:
        tuple[Mapping[str, Any], dict[str, Any], list[str]]: The weights; the meta data, empty if there is none, to
        which an entry ``weights`` is added where EMAHook was used; and the names of the other entries, sorted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds more than plain data, has no ``state_dict`` with names, or no dict as its meta data.
    """
    content = _entries(safe_load(source), source)
    state_dict = content.get('state_dict')
    if not isinstance(state_dict, Mapping):
        raise ValueError(f'{source} must be a checkpoint with a state_dict, it has {sorted(map(str, content))[:5]}')
    if weights is not None:
        state_dict, _ = find_weights(content, weights, source)
    unnamed = [name for name in state_dict if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f'{source} must have names alone in its state_dict, got {unnamed[0]!r}')
    meta = content.get('meta') or {}
    if not isinstance(meta, Mapping):
        raise ValueError(f'{source} must have a dict as its meta data, got a {type(meta).__name__}')
    if saved_by_ema_hook(content):
        meta = dict(meta, weights=weights or 'averaged')
    # The mapping itself: PyTorch's has the versions of the modules as an attribute.
    return state_dict, dict(meta), sorted(str(name) for name in content if name not in PUBLISHED)


def publish_file(source: str, target: str, weights: str | None = None) -> tuple[Path, list[str], list[str]]:
    """Save the weights and the meta data of a checkpoint of MMEngine alone, with a hash of the file in its name.

    Zeros stay zeros, and names lose the parts that ``torch.compile``, checkpoint_wrapper and FSDP add. Where EMA was
    used, MMEngine's ``state_dict`` holds the averaged weights: these are kept unless ``weights`` says otherwise. The
    meta data say under ``weights`` which they are. The versions of this package and of PyTorch join the meta data, in
    which MMEngine puts its own, the config and the classes.

    Args:
        source (str): Path or URL.
        target (str): File to write, to which ``-<hash>`` is added before its suffix.
        weights (str, optional): ``'raw'`` or ``'averaged'``, as for :func:`load_weights_and_meta`.

    Returns:
        tuple[Path, list[str], list[str]]: The file written, the entries that were left out, and what its meta data
        lacks of :data:`EXPECTED_META`.

    Raises:
        FileExistsError: If that file exists.
        ValueError: If the checkpoint has no ``state_dict`` of tensors, or no dict as its meta data.
    """
    state_dict, meta, dropped = load_weights_and_meta(source, weights)
    others = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f'{source} must have tensors alone in its state_dict, {others[0]!r} is a '
                         f'{type(state_dict[others[0]]).__name__}: save the state_dict of a model')
    # Clones, as a view would be saved with all that it is a view of.
    state_dict = {clean_name(name, PRIVATE_PARTS): value.detach().clone() for name, value in state_dict.items()}
    buffer = io.BytesIO()
    # Of what was published or deployed before, its own versions stay.
    meta = {'pelk_mm_version': __version__, 'torch_version': str(torch.__version__), **meta}
    torch.save(dict(meta=meta, state_dict=state_dict), buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    path = Path(target)
    path = path.with_name(f'{path.stem}-{digest}{path.suffix or ".pth"}')
    refuse_existing(path)
    write_whole(buffer.getbuffer(), str(path))
    return path, dropped, [key for key in EXPECTED_META if not meta.get(key)]


def _entries(content: Any, source: str) -> Mapping:
    if not isinstance(content, Mapping):
        raise ValueError(f'{source} must hold a dict of tensors, or of dicts of tensors, got a '
                         f'{type(content).__name__}: it is no checkpoint of a model')
    return content


def _named_tensors(content: Mapping) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
