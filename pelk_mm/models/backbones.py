"""The networks of :mod:`pelk_mm.nets` for MMEngine: registered, with configs instead of callables."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import nn

from .. import nets
from ..registry import MODELS

Net = TypeVar('Net', bound=type)


class LargeKernelNet(nets.LargeKernelNet, BaseModule):
    """A network of :mod:`pelk_mm.nets` as a module of MMEngine.

    A class that inherits from this one and then from the network takes the arguments of the network, by name, and:

    Args:
        norm_cfg (dict, optional): Norm of stem, downsampling, blocks and outputs, in place of ``norm_layer``. Defaults
            to ``dict(type='pelk_mm.LN2d', eps=1e-6)``.
        branch_norm_cfg (dict, optional): Norm after each convolution of a mixer, in place of ``branch_norm_layer``.
            Defaults to BatchNorm; None gives the convolutions a bias instead.
        act_cfg (dict, optional): Activation of the blocks, in place of ``act_layer``. Defaults to GELU.
        init_cfg (dict | list[dict], optional): MMEngine's initialisation; ``dict(type='Pretrained', ...)`` loads. The
            networks initialise themselves before it.
    """

    def __init__(self,
                 *args: Any,
                 norm_cfg: dict | None = None,
                 branch_norm_cfg: Mapping | None = MappingProxyType(dict(type='BN')),
                 act_cfg: dict | None = None,
                 init_cfg: dict | list[dict] | None = None,
                 **kwargs: Any) -> None:
        # A plain dict of our own: a read-only default could not be deep-copied, which EMA does.
        self.branch_norm_cfg = None if branch_norm_cfg is None else dict(branch_norm_cfg)
        if norm_cfg is not None:
            kwargs['norm_layer'] = partial(_build_norm, norm_cfg)
        if act_cfg is not None:
            kwargs['act_layer'] = partial(build_activation_layer, act_cfg)
        kwargs['branch_norm_layer'] = self.branch_norm_cfg and partial(_build_norm, self.branch_norm_cfg)
        super().__init__(*args, **kwargs)
        self.init_cfg = copy.deepcopy(init_cfg)

    def build_branch_norm(self, channels: int) -> nn.Module:
        """Make the norm after one convolution of a mixer."""
        return _build_norm(self.branch_norm_cfg, channels)


def _build_norm(cfg: dict | None, channels: int) -> nn.Module:
    return build_norm_layer(cfg, channels)[1]


def _with_signature(cls: Net) -> Net:
    """Give a class a constructor that shows all arguments: those of its network, with configs for callables."""
    kind: Any = cls
    network: Any = kind.__bases__[1]
    configs = inspect.signature(LargeKernelNet.__init__).parameters
    shown = [configs.get(name.replace('_layer', '_cfg'), parameter)
             for name, parameter in inspect.signature(network.__init__).parameters.items()]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super(kind, self).__init__(*args, **kwargs)

    __init__.__qualname__ = f'{cls.__qualname__}.__init__'
    kind.__init__ = __init__
    kind.__init__.__signature__ = inspect.Signature([*shown, configs['init_cfg']], return_annotation=None)
    return cls


@MODELS.register_module()
@_with_signature
class PeLK(LargeKernelNet, nets.PeLK):
    """:class:`pelk_mm.nets.PeLK`, whose arguments it takes, as a backbone for mmpretrain, mmseg and mmdet.

    ``norm_cfg``, ``branch_norm_cfg`` and ``act_cfg`` take the place of the callables, see :class:`LargeKernelNet`.

    Examples:
        >>> import torch
        >>> from pelk_mm.models import PeLK
        >>> model = PeLK('tiny', norm_cfg=dict(type='BN'), out_indices=(0, 3), gap_before_final_norm=False)
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
        [(1, 124, 16, 16), (1, 998, 2, 2)]
    """


@MODELS.register_module()
@_with_signature
class SLaK(LargeKernelNet, nets.SLaK):
    """:class:`pelk_mm.nets.SLaK`, whose arguments it takes, as a backbone for mmpretrain, mmseg and mmdet.

    ``norm_cfg``, ``branch_norm_cfg`` and ``act_cfg`` take the place of the callables, see :class:`LargeKernelNet`.
    """
