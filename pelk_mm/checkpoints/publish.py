"""Publish the checkpoint of a training."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..module_names import PRIVATE_PARTS, clean_name
from .atomic import atomic_write, refuse_existing, serialize
from .entries import load_weights_and_meta

# The meta data by which a published checkpoint can be identified.
EXPECTED_META = ('cfg', 'dataset_meta', 'mmengine_version')


def publish_file(source: str, target: str, weights: str | None = None) -> tuple[Path, list[str], list[str]]:
    """Save only the weights and the meta data of a checkpoint of MMEngine, with a hash of the file in its name.

    Zeros stay zeros, and names lose the parts that ``torch.compile``, checkpoint_wrapper and FSDP add. Where EMA was
    used, MMEngine's ``state_dict`` holds the averaged weights: these are kept unless ``weights`` says otherwise. The
    meta data say under ``weights`` which they are. The versions of this package and of PyTorch join the meta data, in
    which MMEngine puts its own, the config and the classes.

    Args:
        source (str): Path or URL.
        target (str): File to write, to which ``-<hash>`` is added before its suffix.
        weights (str, optional): ``'raw'`` or ``'averaged'``, as for
            :func:`pelk_mm.checkpoints.entries.load_weights_and_meta`.

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
        raise ValueError(f'{source} must have only tensors in its state_dict, {others[0]!r} is a '
                         f'{type(state_dict[others[0]]).__name__}: save the state_dict of a model')
    # Clones, as a view would be saved with all that it is a view of.
    state_dict = {clean_name(name, PRIVATE_PARTS): value.detach().clone() for name, value in state_dict.items()}
    # Of what was published or deployed before, its own versions stay.
    meta = {'pelk_mm_version': __version__, 'torch_version': str(torch.__version__), **meta}
    content = serialize(dict(meta=meta, state_dict=state_dict))
    path = Path(target)
    path = path.with_name(f'{path.stem}-{hashlib.sha256(content).hexdigest()[:8]}{path.suffix or ".pth"}')
    refuse_existing(path)
    atomic_write(content, path)
    return path, dropped, [key for key in EXPECTED_META if not meta.get(key)]
