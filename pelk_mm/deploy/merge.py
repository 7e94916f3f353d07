"""Trained models in their deployed form: branches, norms and embedding merged, and the config that builds it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import __version__
from ..analysis import build_model
from ..checkpoints.atomic import atomic_save, atomic_write, refuse_existing
from ..checkpoints.entries import load_weights_and_meta
from ..engine.processes import nested_dicts

# Settings for training only. Hooks of the config average or mask weights.
_TRAINING = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'custom_hooks',
             'load_from', 'resume', 'start_from', 'work_dir')
# Names of config types, without their scope.
BATCH_NORMS = ('BN', 'BN2d', 'SyncBN', 'AllReduceBN')


@dataclass
class Deployment:
    """A model in its deployed form.

    Attributes:
        model (nn.Module): As ``cfg`` builds it, with the merged weights, in eval mode.
        cfg (Config): The config without the settings that only training needs.
        layers (list[str]): Names of the modules in which something was merged; each maps the same input to the same
            output before and after.
    """

    model: nn.Module
    cfg: Config
    layers: list[str]


def load_trained(cfg: Config, checkpoint: str, weights: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config and load all of its weights from a checkpoint, a path or URL.

    Of training with EMA these are by default the averaged ones, which were validated; ``weights`` may be ``'raw'``.

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

    ``meta``, the trained checkpoint's, is kept, except for the config.

    Raises:
        FileExistsError: If one of both exists.
        OSError: If they cannot be written.
    """
    path = Path(path)
    config, text = path.with_suffix('.py'), deployment.cfg.pretty_text
    refuse_existing(path, config)
    meta = dict(meta, cfg=text, pelk_mm_version=__version__)
    atomic_save(dict(meta=meta, state_dict=deployment.model.state_dict()), path)
    # Last, as it takes no time: an end while the weights are written leaves neither.
    atomic_write(text.encode(), config)


def deploy(model: nn.Module, cfg: Config) -> Deployment:
    """Merge the backbone's branches, and BatchNorm into the convolution before it elsewhere.

    Outside of the backbone, fold a part's norms (neck, each head) only if the part built without ``norm_cfg`` has
    exactly the remaining parameters; other parts stay as they are. Auxiliary heads, which serve only training, go.
    Neither the trained classifier, segmentor or detector nor its config is changed.

    Returns:
        Deployment: The merged model on the CPU.

    Raises:
        ValueError: If there is nothing to merge, or the model is deployed already.
    """
    backbone = getattr(model, 'backbone', None)
    if backbone is None:
        raise ValueError(f'model must have a backbone, got {type(model).__name__}')
    if cfg.model.backbone.get('deploy'):
        raise ValueError('the config builds the deployed form already: model.backbone.deploy is True')
    merged = copy.deepcopy(model).cpu().eval()
    deployed_cfg = Config({key: value for key, value in copy.deepcopy(cfg.to_dict()).items() if key not in _TRAINING})
    if cfg.model.get('auxiliary_head'):
        merged.register_module('auxiliary_head', None)
        deployed_cfg.model.auxiliary_head = None
    layers = []
    if hasattr(backbone, 'switch_to_deploy'):
        layers += [f'backbone.{name}' for name in _mergeable(backbone)]
        merged.backbone.switch_to_deploy()
        deployed_cfg.model.backbone.update(deploy=True, init_cfg=None)
    layers += _fold_parts(merged, deployed_cfg)
    if not layers:
        raise ValueError(f'nothing in this {type(model).__name__} can be merged: its {type(backbone).__name__} has no '
                         'switch_to_deploy(), and no BatchNorm outside of it follows a convolution')
    result = build_model(deployed_cfg, 'cpu')
    result.load_state_dict(merged.state_dict(), strict=True)
    return Deployment(result, deployed_cfg, layers)


def _mergeable(backbone: nn.Module) -> list[str]:
    names = [name for name, module in backbone.named_modules() if name and hasattr(module, 'switch_to_deploy')]
    return [name for name in names if not any(other.startswith(f'{name}.') for other in names)]


def _fold_parts(model: nn.Module, cfg: Config) -> list[str]:
    """Fold the norms of all parts except the backbone, in place in ``model`` and ``cfg``; names of the modules."""
    parts = {name: copy.deepcopy(part) for name, part in model.named_children()
             if name != 'backbone' and cfg.model.get(name)}  # yapf: disable
    layers = {name: _fold_norms(part) for name, part in parts.items()}
    candidate = copy.deepcopy(cfg)
    for node in nested_dicts([candidate.model[name] for name in parts]):
        norm = node.get('norm_cfg')
        if isinstance(norm, dict) and str(norm.get('type', '')).rpartition('.')[2] in BATCH_NORMS:
            node['norm_cfg'] = None
    rebuilt = build_model(candidate, 'cpu')
    names = []
    for name, part in parts.items():
        if layers[name] and _shapes(part) == _shapes(getattr(rebuilt, name)):
            setattr(model, name, part)
            cfg.model[name] = candidate.model[name]
            names += [f'{name}.{layer}' for layer in layers[name]]
    return names


def _fold_norms(part: nn.Module) -> list[str]:
    """Fold every BatchNorm that directly follows the convolution of a ``ConvModule``; names of these modules."""
    names = []
    for name, module in part.named_modules():
        if not isinstance(module, ConvModule) or not module.with_norm or module.with_spectral_norm:
            continue
        order, norm = module.order, module.norm
        follows = order.index('norm') == order.index('conv') + 1
        if follows and type(module.conv) is nn.Conv2d and isinstance(norm, nn.modules.batchnorm._BatchNorm):
            module.conv = fuse_conv_bn_eval(module.conv, norm)
            setattr(module, module.norm_name, nn.Identity())
            names.append(name)
    return names


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items() if isinstance(value, Tensor)}
