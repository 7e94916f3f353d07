"""Load trained models, save deployed ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from .. import __version__
from ..analysis import build_model
from ..checkpoints.atomic import atomic_save, atomic_write, refuse_existing
from ..checkpoints.entries import load_weights_and_meta
from .merging import Deployment


def load_trained(cfg: Config, checkpoint: str, weights: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config and load all of its weights.

    Args:
        cfg (Config): A config with ``model``.
        checkpoint (str): Path or URL of a checkpoint of this model.
        weights (str, optional): ``'raw'`` or ``'averaged'``, of a checkpoint of training with EMA. By default the
            averaged ones, which were validated.

    Returns:
        tuple[nn.Module, dict[str, Any]]: The model on the CPU in eval mode, and the checkpoint's meta data.

    Raises:
        FileNotFoundError: If the checkpoint is missing.
        ValueError: If the checkpoint does not fit the model, lacks these weights, or holds more than plain data.
    """
    state_dict, meta, _ = load_weights_and_meta(checkpoint, weights)
    model = build_model(cfg, 'cpu')
    try:
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        raise ValueError(f'{checkpoint} does not fit the config: {error}') from error
    return model, meta


def save_deployment(deployment: Deployment, meta: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, and beside it, with the suffix ``.py``, the config that builds its model.

    Args:
        deployment (Deployment): The result of :func:`pelk_mm.deploy.deploy`.
        meta (Mapping[str, Any]): The trained checkpoint's, which is kept, except the config.
        path (str | Path): The checkpoint.

    Raises:
        FileExistsError: If one of both exists.
        OSError: If they cannot be written.
    """
    path = Path(path)
    config, text = path.with_suffix('.py'), deployment.cfg.pretty_text
    refuse_existing(path, config)
    meta = dict(meta, cfg=text, pelk_mm_version=__version__)
    atomic_save(dict(meta=meta, state_dict=deployment.model.state_dict()), path)
    # Last, as it takes no time: a process that is killed while the weights are written leaves neither.
    atomic_write(text.encode(), config)
