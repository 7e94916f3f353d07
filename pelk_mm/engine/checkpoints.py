"""Checkpoints of other code bases brought to the names used here, and checkpoints made ready to publish."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.fileio import get_local_path
from torch import Tensor

from .. import __version__, compat

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
        try:
            return compat.load_safely(path, map_location)
        except pickle.UnpicklingError as error:
            raise ValueError(f'{source!r} holds more than tensors and plain values, or is no checkpoint, and is not '
                             'loaded, as that could run any code. If you trust its source, save its state_dict alone '
                             'and load that') from error
        except (EOFError, RuntimeError) as error:
            raise ValueError(f'{source!r} is no checkpoint, or a part of one: {error}') from error


def convert_file(source: str, target: str, names: Mapping[str, str], key: str | None = None) -> tuple[int, list[str]]:
    """Rename the tensors of a checkpoint and save them as ``dict(state_dict=...)``.

    Args:
        source (str): Path or URL.
        target (str): File to write; it must not exist.
        names (Mapping[str, str]): :data:`SLAK_NAMES`, :data:`CONVNEXT_NAMES` or :data:`BACKBONE_NAMES`.
        key (str, optional): Entry of the checkpoint that holds the tensors. By default ``state_dict``, else ``model``,
            else the checkpoint itself.

    Returns:
        tuple[int, list[str]]: How many tensors were written, and the names that nothing matched, which were not.

    Raises:
        FileExistsError: If ``target`` exists.
        ValueError: If the checkpoint has no ``key``, or nothing in it matches.
    """
    path = Path(target)
    _refuse_existing(path)
    content = safe_load(source)
    if key is None:
        key = next((name for name in ('state_dict', 'model') if isinstance(content.get(name), Mapping)), None)
    elif key not in content:
        raise ValueError(f'key must be an entry of {source}, got {key!r}, it has {sorted(content)}')
    tensors = {name: value for name, value in (content[key] if key else content).items() if isinstance(value, Tensor)}
    converted, unmatched = rename(tensors, names)
    if not converted:
        raise ValueError(f'no name in {source} matches; its first are {list(tensors)[:3]}')
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=converted), path)
    return len(converted), unmatched


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
        match = next((found for pattern in names if (found := re.fullmatch(pattern, name))), None)
        if match is None:
            unmatched.append(name)
            continue
        new = match.expand(names[match.re.pattern])
        if new in converted:
            raise ValueError(f'two tensors would become {new}, one of them is {name}')
        converted[new] = tensor
    return converted, unmatched


def publish_file(source: str, target: str) -> tuple[Path, list[str], list[str]]:
    """Save the weights and the meta data of a checkpoint of MMEngine alone, with a hash of the file in its name.

    Zeros stay zeros. Where EMA was used, MMEngine's ``state_dict`` holds the averaged weights, and these are kept. The
    versions of this package and of PyTorch join the meta data, in which MMEngine puts its own, the config and the
    classes.

    Args:
        source (str): Path or URL.
        target (str): File to write, to which ``-<hash>`` is added before its suffix.

    Returns:
        tuple[Path, list[str], list[str]]: The file written, the entries that were left out, and what its meta data
        lacks of :data:`EXPECTED_META`.

    Raises:
        FileExistsError: If that file exists.
        ValueError: If the checkpoint has no ``state_dict``.
    """
    content = safe_load(source)
    if 'state_dict' not in content:
        raise ValueError(f'{source} must be a checkpoint with a state_dict, it has {sorted(content)[:5]}')
    # Clones, as a view would be saved with all that it is a view of.
    weights = {name: value.detach().clone() for name, value in content['state_dict'].items()}
    buffer = io.BytesIO()
    meta = dict(pelk_mm_version=__version__, torch_version=str(torch.__version__), **content.get('meta', {}))
    torch.save(dict(meta=meta, state_dict=weights), buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    path = Path(target)
    path = path.with_name(f'{path.stem}-{digest}{path.suffix or ".pth"}')
    _refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path, sorted(set(content) - set(PUBLISHED)), [key for key in EXPECTED_META if not meta.get(key)]


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f'{path} exists and is not overwritten: choose another name')
