"""A trained model in its deployed form: branches, norms and embedding merged, and the config that builds it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..analysis import build_model

# What only training needs. Hooks of the config average or mask weights.
_TRAINING = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'custom_hooks',
             'load_from', 'resume', 'start_from', 'work_dir')
# Names of config types, without their scope.
BATCH_NORMS = ('BN', 'BN2d', 'SyncBN', 'AllReduceBN')


@dataclass
class Deployment:
    """A model in its deployed form.

    Attributes:
        model (nn.Module): As ``cfg`` builds it, with the merged weights, in eval mode.
        cfg (Config): The config without what only training needs.
        layers (list[str]): Names of the modules in which something was merged; each maps the same input to the same
            output before and after.
    """

    model: nn.Module
    cfg: Config
    layers: list[str]


def deploy(model: nn.Module, cfg: Config) -> Deployment:
    """Merge what can be merged: the backbone's branches, and BatchNorm into the convolution before it elsewhere.

    Outside of the backbone, norms are folded part by part (neck, each head), where the part without ``norm_cfg`` has
    just the parameters that folding leaves; other parts stay as they are. Auxiliary heads, which serve training alone,
    are left out.

    Args:
        model (nn.Module): A classifier, segmentor or detector as ``cfg`` builds it, with trained weights. It is left
            as it is.
        cfg (Config): Its config, which is not changed.

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
    deployed_cfg = _without_training(cfg)
    if cfg.model.get('auxiliary_head'):
        merged.register_module('auxiliary_head', None)
        deployed_cfg.model.auxiliary_head = None
    layers = []
    if hasattr(backbone, 'switch_to_deploy'):
        layers += [f'backbone.{name}' for name in _mergeable(backbone)]
        merged.backbone.switch_to_deploy()
        deployed_cfg.model.backbone.deploy = True
        deployed_cfg.model.backbone.init_cfg = None
    layers += _fold_parts(merged, deployed_cfg)
    if not layers:
        raise ValueError(f'nothing in this {type(model).__name__} can be merged: its {type(backbone).__name__} has no '
                         'switch_to_deploy(), and no BatchNorm outside of it follows a convolution')
    result = build_model(deployed_cfg, 'cpu')
    result.load_state_dict(merged.state_dict(), strict=True)
    return Deployment(result, deployed_cfg, layers)


def _without_training(cfg: Config) -> Config:
    content = copy.deepcopy(cfg.to_dict())
    for key in _TRAINING:
        content.pop(key, None)
    return Config(content)


def _mergeable(backbone: nn.Module) -> list[str]:
    """Names of the innermost modules that can be switched."""
    names = [name for name, module in backbone.named_modules() if name and hasattr(module, 'switch_to_deploy')]
    return [name for name in names if not any(other.startswith(f'{name}.') for other in names)]


def _fold_parts(model: nn.Module, cfg: Config) -> list[str]:
    """Fold the norms of all parts but the backbone, in place in ``model`` and ``cfg``; names of the folded modules."""
    parts = {name: part for name, part in model.named_children() if name != 'backbone' and cfg.model.get(name)}
    folded = {name: copy.deepcopy(part) for name, part in parts.items()}
    layers = {name: _fold_norms(part) for name, part in folded.items()}
    candidate = copy.deepcopy(cfg)
    for name in parts:
        candidate.model[name] = _without_norms(candidate.model[name])
    rebuilt = build_model(candidate, 'cpu')
    names = []
    for name, part in folded.items():
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


def _without_norms(node: Any) -> Any:
    """A config with every ``norm_cfg`` that names a BatchNorm set to None."""
    if isinstance(node, dict):
        node = {key: _without_norms(value) for key, value in node.items()}
        norm = node.get('norm_cfg')
        if isinstance(norm, dict) and str(norm.get('type', '')).rpartition('.')[2] in BATCH_NORMS:
            node['norm_cfg'] = None
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(_without_norms(value) for value in node)
    return node


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items() if isinstance(value, Tensor)}
