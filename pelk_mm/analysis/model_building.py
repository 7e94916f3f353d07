"""Models as configs describe them, if need be without memory: to count them, to look at shapes."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.overrides import TorchFunctionMode

# What initialisers fill weights with, needless where there are no values.
_FILLS = frozenset(
    getattr(torch.Tensor, name)
    for name in ('add_', 'clamp_', 'erfinv_', 'fill_', 'mul_', 'normal_', 'uniform_', 'zero_'))


class WeightsOnMeta(TorchFunctionMode):
    """A context in which ``torch.empty``, with which layers make their weights, answers on the meta device.

    ``torch.device('meta')`` would take every factory there, and constructors that read values, as drop path rates from
    ``torch.linspace``, could not run.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs['device'] = 'meta'
        elif func in _FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """Build ``cfg.model`` in eval mode, without loading a checkpoint.

    Args:
        cfg (Config): A config with ``model`` and, for models of a toolbox, ``default_scope``. It is not changed.
        device (str): ``'meta'``, the default, costs no memory and next to no time; the model then computes shapes from
            tensors on the meta device. A real device gives PyTorch's default initialisation.

    Raises:
        ValueError: If the config has no model.
    """
    if cfg.get('model') is None:
        raise ValueError(f'cfg must have a model, got a config with the keys {sorted(cfg)}')
    weights = WeightsOnMeta() if torch.device(device).type == 'meta' else nullcontext()
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), weights:
        model = MODELS.build(copy.deepcopy(cfg.model))
    return model.to(device).eval()
