"""The networks of :mod:`pelk_mm.nets`, registered; configs name them with the prefix ``pelk_mm.``."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.models', instead='pelk_mm.nets has the same networks in plain PyTorch')

from ..layers import AllReduceBatchNorm2d, LayerNorm2d
from ..registry import MODELS
from .backbones import LargeKernelNet, PeLK, SLaK

MODELS.register_module('AllReduceBN', module=AllReduceBatchNorm2d)
MODELS.register_module('LN2d', module=LayerNorm2d)

__all__ = ['LargeKernelNet', 'PeLK', 'SLaK']
