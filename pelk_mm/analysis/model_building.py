"""Build the models of configs, also without memory for weights: to count them, or to read shapes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.overrides import TorchFunctionMode

from pelk_mm.checkpoints.pretrained import PretrainedBackbone

# Initialisers of weights, which are not needed without values.
_FILLS = frozenset(
    getattr(torch.Tensor, name)
    for name in ('add_', 'clamp_', 'erfinv_', 'fill_', 'mul_', 'normal_', 'uniform_', 'zero_'))


class WeightsOnMeta(TorchFunctionMode):
    """A context in which ``torch.empty``, with which layers make their weights, uses the meta device.

    ``torch.device('meta')`` would do so for every factory, and constructors that read values, such as drop path rates
    from ``torch.linspace``, could not run.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs['device'] = 'meta'
        elif func in _FILLS and args[0].is_meta:
            return args[0]
        elif len({value.is_meta for value in args if isinstance(value, torch.Tensor)}) == 2:
            # Statistics of norms, which have values, with weights, which have none: folding a norm on construction.
            args = tuple(value.to('meta') if isinstance(value, torch.Tensor) else value for value in args)
        return func(*args, **kwargs)


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """Build ``cfg.model`` in eval mode, without loading a checkpoint.

    Args:
        cfg (Config): A config with ``model`` and, for models of a toolbox, ``default_scope``. A ``data_preprocessor``
            beside the model goes into it, as MMEngine's runner does it. It is not changed.
        device (str): ``'meta'``, the default, costs no memory and next to no time; the model then computes shapes from
            tensors on the meta device. A real device gives PyTorch's default initialisation.

    Raises:
        ValueError: If the config has no model.
    """
    on_meta = torch.device(device).type == 'meta'
    return _build(cfg, WeightsOnMeta() if on_meta else nullcontext()).to(device)


def build_without_weights(cfg: Config) -> nn.Module:
    """Build a model as :func:`build_model` does on the CPU, without memory for its weights.

    What needs no weights works, such as the data preprocessor, and what makes predictions of a network's outputs.
    """
    return _build(cfg, WeightsOnMeta())


def _build(cfg: Config, weights: AbstractContextManager) -> nn.Module:
    if cfg.get('model') is None:
        raise ValueError(f'cfg must have a model, got a config with the keys {sorted(cfg)}')
    content = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        content.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), weights:
        return MODELS.build(content).eval()


def build_with_weights(cfg: Config, checkpoint: str | None = None, device: str = 'cpu', seed: int = 0) -> nn.Module:
    """Build ``cfg.model`` in eval mode, its backbone with the weights of a checkpoint, or with random ones.

    Args:
        cfg (Config): As for :func:`build_model`. It is not changed.
        checkpoint (str, optional): Path or URL of a checkpoint with the complete backbone. None initialises it
            as the config says, but loads nothing that the config names.
        device (str): Where the model goes. Defaults to ``'cpu'``.
        seed (int): Of the random weights; PyTorch's generator is left as it was. Defaults to 0.

    Returns:
        nn.Module: The model; its heads have random weights.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the config has no model, or the checkpoint does not have every weight of the backbone; the
            message says how many it has.
    """
    cfg = copy.deepcopy(cfg)
    if cfg.get('model') is not None:
        _forget_pretrained(cfg.model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(cfg, 'cpu')
        backbone = getattr(model, 'backbone', model)
        if checkpoint is None and hasattr(backbone, 'init_weights'):
            # MMEngine logs how each single parameter was initialised.
            with quiet(MMLogger.get_current_instance()):
                backbone.init_weights()
    match = None if checkpoint is None else PretrainedBackbone(checkpoint)(backbone)
    if match is not None and match.missing:
        raise ValueError(f'checkpoint {checkpoint} must have every weight of {type(backbone).__name__}, it has '
                         f'{len(match.matched)} of {len(match.own)}, and not, for example, '
                         f'{", ".join(match.missing[:3])}: use the config that it was trained with')
    return model.to(device)


@contextmanager
def quiet(*loggers: logging.Logger, level: int = logging.WARNING) -> Iterator[None]:
    """Keep messages below a level from the logs in this context."""
    levels = {logger: logger.level for logger in loggers}
    try:
        for logger in loggers:
            logger.setLevel(level)
        yield
    finally:
        for logger, before in levels.items():
            logger.setLevel(before)


def _forget_pretrained(model: dict) -> None:
    """Take out of a model's config everything that would load weights into its backbone."""
    for part in (model, model.get('backbone', {})):
        if part.get('pretrained') is not None:
            part['pretrained'] = None
        init = part.get('init_cfg')
        if isinstance(init, dict) and 'checkpoint' in init:
            part['init_cfg'] = None
