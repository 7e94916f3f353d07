"""Trained models from their files, deployed ones to theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from .. import __version__
from ..analysis import build_model
from ..engine.checkpoints import safe_load
from .merging import Deployment


def load_trained(cfg: Config, checkpoint: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config and load all of its weights.

    Args:
        cfg (Config): A config with ``model``.
        checkpoint (str): Path or URL of a checkpoint of this model.

    Returns:
        tuple[nn.Module, dict[str, Any]]: The model on the CPU in eval mode, and the checkpoint's meta data.

    Raises:
        FileNotFoundError: If the checkpoint is missing.
        ValueError: If the checkpoint does not fit the model, or holds more than plain data.
    """
    content = safe_load(checkpoint)
    weights = content.get('state_dict') if isinstance(content, Mapping) else None
    if weights is None:
        raise ValueError(f'{checkpoint} must be a checkpoint with a state_dict, as MMEngine writes them')
    model = build_model(cfg, 'cpu')
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f'{checkpoint} does not fit the config: {error}') from error
    return model, content.get('meta', {})


def save_deployment(deployment: Deployment, meta: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, and beside it, with the suffix ``.py``, the config that builds its model.

    Args:
        deployment (Deployment): What :func:`pelk_mm.deploy.deploy` returned.
        meta (Mapping[str, Any]): The trained checkpoint's, which is kept, but for the config.
        path (str | Path): The checkpoint.

    Raises:
        FileExistsError: If one of both exists.
    """
    path = Path(path)
    for file in (path, path.with_suffix('.py')):
        if file.exists():
            raise FileExistsError(f'{file} exists and is not overwritten: choose another name')
    path.parent.mkdir(parents=True, exist_ok=True)
    deployment.cfg.dump(str(path.with_suffix('.py')))
    meta = dict(meta, cfg=deployment.cfg.pretty_text, pelk_mm_version=__version__)
    torch.save(dict(meta=meta, state_dict=deployment.model.state_dict()), path)
