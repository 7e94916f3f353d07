"""Layer-wise learning-rate decay by the depths of parameters that the backbone returns."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from math import ceil

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from pelk_mm.module_names import clean_name
from pelk_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

DECAY_TYPES = ('layer_wise', 'stage_wise')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Lower the learning rates of layers near the image, for any model whose backbone has ``get_layer_depth``.

    Every parameter's learning rate is multiplied by ``layer_decay_rate ** (number - depth - 1)``, with the depth and
    the number of depths that the backbone's ``get_layer_depth(param_name, prefix)`` returns. Parameters outside the
    backbone keep the full rate. The backbone may have any class and any place in the model; PeLK and mmpretrain's
    backbones have the method. Each of several backbones returns the depths of its own parameters. mmpretrain's
    RepLKNet, which has no such method, is grouped as its authors do.

    Everything that MMEngine's default constructor reads from ``paramwise_cfg`` keeps its meaning (``norm_decay_mult``,
    ``bias_decay_mult``, ``flat_decay_mult``, ``custom_keys`` with ``lr_mult`` and ``decay_mult``, ...) and multiplies
    with the decay. Parameters of the same settings share one group, which keeps ``layer_id`` and ``lr_scale``.

    Args:
        optim_wrapper_cfg (dict): As of the default constructor; the optimizer must set ``lr``.
        paramwise_cfg (dict): As of the default constructor, and

            - ``layer_decay_rate`` (float): In (0, 1].
            - ``decay_type`` (str): 'layer_wise' or 'stage_wise'; the latter needs a backbone whose ``get_layer_depth``
              takes ``stage_wise``. Defaults to 'layer_wise'.

    Raises:
        ValueError: If one of these is missing or wrong, or, when it is called, the model has no suitable backbone.

    Examples:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='pelk_mm.LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.9, decay_type='stage_wise', flat_decay_mult=0.0))
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg.layer_decay_rate must be a number in (0, 1], got {rate!r}')
        decay_type = self.paramwise_cfg.get('decay_type', 'layer_wise')
        if decay_type not in DECAY_TYPES:
            raise ValueError(f'paramwise_cfg.decay_type must be one of {DECAY_TYPES}, got {decay_type!r}')
        if self.base_lr is None:
            raise ValueError('the optimizer must set lr: layer-wise decay scales it')
        self.decay_rate = rate
        self.stage_wise = decay_type == 'stage_wise'

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the parameters of ``module`` to the groups.

        Args:
            params (list[dict]): The groups so far, edited in place.
            module (nn.Module): The model, or on recursion by the default constructor one of its modules.
            prefix (str): Name of ``module``, '' for the model.
            **kwargs: Passed on by the default constructor's recursion.
        """
        if prefix:
            # custom_keys hold names as they are without wrappers. The dot stands for a model that is itself wrapped.
            super().add_params(params, module, prefix=clean_name(prefix) or '.', **kwargs)
            return
        self._ask_backbones(module)
        single = []
        logger = MMLogger.get_current_instance()
        logger.addFilter(_is_no_unscaled_rate)
        try:
            super().add_params(single, module, **kwargs)
        finally:
            logger.removeFilter(_is_no_unscaled_rate)
        params.extend(self._merge(single))
        _log_table(params, self.base_lr)
        self._warn_of_nothing(module, single)

    def _ask_backbones(self, model: nn.Module) -> None:
        """Ask for the depths and the numbers of depths of their parameters, by ``id``.

        What is in no backbone lies in the last depth of the first one.
        """
        self._depths: dict[int, tuple[int, int]] = {}
        number = 0
        for name, module in model.named_modules():
            # mmpretrain's classifiers have a method of that name too, which knows only 'backbone.'.
            depth = find_layer_depth(module)
            if depth is None or 'prefix' not in inspect.signature(depth).parameters:
                continue
            # A wrapper that passes attributes on answers with the method of the module inside of it.
            backbone = getattr(depth, '__self__', module)
            own = {id(param): param_name for param_name, param in backbone.named_parameters()}
            if own.keys() <= self._depths.keys():
                continue
            if self.stage_wise:
                if 'stage_wise' not in inspect.signature(depth).parameters:
                    raise ValueError(f"paramwise_cfg.decay_type='stage_wise' needs a backbone whose get_layer_depth "
                                     f"takes stage_wise; that of {type(backbone).__name__} ({name!r}) does not: "
                                     "use decay_type='layer_wise'")
                depth = partial(depth, stage_wise=True)
            found = {key: depth(clean_name(param_name), prefix='') for key, param_name in own.items()}
            self._depths = {**found, **self._depths}
            number = number or next(iter(found.values()))[1]
        if not self._depths:
            raise ValueError('layer-wise learning-rate decay needs a backbone with get_layer_depth(param_name, prefix) '
                             f'as PeLK and those of mmpretrain have; {type(model).__name__} holds none')
        self._outside = number - 1, number

    def _depth_of(self, parameter: nn.Parameter) -> tuple[int, int]:
        return self._depths.get(id(parameter), self._outside)

    def _merge(self, single: list[dict]) -> list[dict]:
        """Scale groups of one parameter each, and join those of the same settings, the shallowest first."""
        groups = {}
        for group in single:
            depth, number = self._depth_of(group['params'][0])
            scale = self.decay_rate**(number - depth - 1)
            settings = {key: value for key, value in group.items() if key not in ('params', 'lr_mult', 'decay_mult')}
            settings.update(layer_id=depth, lr_scale=scale, lr=group.get('lr', self.base_lr) * scale)
            if self.base_wd is not None:
                settings.setdefault('weight_decay', self.base_wd)
            merged = groups.setdefault(repr(sorted(settings.items())), dict(settings, params=[]))
            merged['params'] += group['params']
        return sorted(groups.values(), key=lambda group: group['layer_id'])

    def _warn_of_nothing(self, model: nn.Module, single: list[dict]) -> None:
        """Warn if an option applies to no parameter, or to almost none."""
        logger = MMLogger.get_current_instance()
        own = [param for group in single for param in group['params'] if id(param) in self._depths]
        lowered = [param for param in own if self._depth_of(param)[0] < self._depth_of(param)[1] - 1]
        if self.decay_rate < 1 and 2 * len(lowered) < len(own) or not own:
            logger.warning(f'layer_decay_rate={self.decay_rate} lowers the learning rate of {len(lowered)} of '
                           f'{len(own)} trained parameters of the backbone, the others have the depth of the head')
        names = [clean_name(name) for name, _ in model.named_parameters()]
        unused = [key for key in self.paramwise_cfg.get('custom_keys', ()) if not any(key in name for name in names)]
        if unused:
            logger.warning(f'paramwise_cfg.custom_keys match no parameter: {", ".join(map(repr, unused))}')


def _is_no_unscaled_rate(record: logging.LogRecord) -> bool:
    """Suppress the base class's per-parameter log; it shows unscaled rates."""
    return not record.getMessage().startswith('paramwise_options')


def _log_table(groups: list[dict], base_lr: float) -> None:
    lines = [
        f'Layer-wise learning-rate decay from lr {base_lr:g}, {len(groups)} parameter groups:',
        'depth   lr scale         lr  weight decay  tensors  parameters'
    ]
    for group in groups:
        lines.append(f'{group["layer_id"]:5d}{group["lr_scale"]:11.4g}{group["lr"]:11.4g}'
                     f'{group.get("weight_decay", 0.0):14.4g}{len(group["params"]):9d}'
                     f'{sum(param.numel() for param in group["params"]):12,d}')
    MMLogger.get_current_instance().info('\n'.join(lines))


def find_layer_depth(module: nn.Module) -> Callable | None:
    """Return a module's ``get_layer_depth``, or the one that is written here for its class; None if there is neither.

    It takes ``param_name`` and ``prefix``, and returns the depth and the number of depths.
    """
    # Known by its name: mmpretrain is not imported for it.
    is_replknet = any(cls.__name__ == 'RepLKNet' for cls in type(module).__mro__)
    return getattr(module, 'get_layer_depth', partial(_replknet_depth, module) if is_replknet else None)


def _replknet_depth(backbone: nn.Module, param_name: str, prefix: str = '') -> tuple[int, int]:
    """Group mmpretrain's RepLKNet as its authors do: 12 groups of 31B and 31L.

    The stem is 0, stages 1 and 2 are one group each, stage 3 is cut into groups of four blocks (two with large kernels,
    two without), the last stage is the last group; a transition belongs to the group before it.
    """
    parts = param_name.removeprefix(prefix).split('.')
    last = 3 + ceil(len(backbone.stages[2].blocks) / 4)
    if parts[0] == 'stem':
        return 0, last + 2
    if parts[0] == 'transitions':
        return (1, 2, last - 1)[int(parts[1])], last + 2
    if parts[0] == 'stages' and parts[2] == 'blocks':
        return (1, 2, 3 + int(parts[3]) // 4, last)[int(parts[1])], last + 2
    return last + 1, last + 2
