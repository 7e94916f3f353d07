"""Patches of MMEngine's loading and writing of files, which :func:`pelk_mm.compat.setup` applies."""

from __future__ import annotations

import os
from functools import partial, wraps

import mmengine.runner.checkpoint
import torch
from mmengine.fileio import LocalBackend
from mmengine.runner.checkpoint import CheckpointLoader

from .atomic import atomic_write
from .loading import checkpoint_globals, load_checked, safe_load


def allow_checkpoint_contents() -> None:
    """Let ``torch.load(weights_only=True)``, the default since PyTorch 2.6, read MMEngine's checkpoints.

    For mmengine 0.10.7, which cannot resume with PyTorch >= 2.6: its log history holds ``HistoryBuffer`` objects and
    NumPy values. onedl-mmengine 0.10.12 allows them itself.
    """
    if not hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals'):
        torch.serialization.add_safe_globals(checkpoint_globals())


def never_load_unsafely() -> None:
    """Make MMEngine load every checkpoint by :func:`safe_load`, in training and testing too.

    For onedl-mmengine 0.10.12: it loads a checkpoint that does not load safely again with ``weights_only=False``, and
    so runs its code. For every MMEngine: it loads downloads with ``weights_only=False``. mmengine 0.10.7
    leaves local files to PyTorch, which refuses them since 2.6, but then advises to load the file unsafely.
    """
    module = mmengine.runner.checkpoint
    if hasattr(module, '_safe_torch_load'):
        module._safe_torch_load = _load_as_mmengine_does
    module.load_url = _load_url
    CheckpointLoader.register_scheme('', loader=load_from_local, force=True)


def load_from_local(filename: str, map_location=None):
    """Load a local file for MMEngine, by :func:`safe_load`. MMEngine logs the name of this function."""
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    return safe_load(filename, map_location)


def _load_as_mmengine_does(file, map_location=None, weights_only=None):
    return safe_load(file, map_location)


def _load_url(url, model_dir=None, map_location=None, progress=True):
    return load_checked(url, partial(torch.hub.load_state_dict_from_url, url, model_dir, map_location, progress))


def never_run_saved_configs() -> None:
    """Take ``meta['config']`` out of the checkpoints that MMEngine loads.

    For every MMEngine: resuming runs that text as Python code, to compare numbers of GPUs. MMCV 1 saved it; MMEngine
    saves ``meta['cfg']``, which it does not change.
    """
    upstream = CheckpointLoader.load_checkpoint.__func__
    if hasattr(upstream, '__wrapped__'):
        return

    @wraps(upstream)
    def load_checkpoint(cls, *args, **kwargs):
        checkpoint = upstream(cls, *args, **kwargs)
        meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
        if isinstance(meta, dict):
            meta.pop('config', None)
        return checkpoint

    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)


def write_files_atomically() -> None:
    """Write checkpoints, and all other files of MMEngine's local file backend, by :func:`atomic_write`.

    For every MMEngine: it writes under the final name, so a killed process or a full disk leaves an incomplete file
    instead of the previous one.
    """
    upstream = LocalBackend.put
    if hasattr(upstream, '__wrapped__'):
        return

    @wraps(upstream)
    def put(self, obj, filepath):
        if os.path.exists(filepath) and not os.path.isfile(filepath):
            # A device or a pipe is written to, not replaced.
            return upstream(self, obj, filepath)
        return atomic_write(obj, filepath)

    LocalBackend.put = put
