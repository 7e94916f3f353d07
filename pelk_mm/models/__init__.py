"""Registered models; configs name them with the prefix ``pelk_mm.``."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.models')

from pelk_mm.layers import AllReduceBatchNorm2d
from pelk_mm.registry import MODELS

from .backbones import LargeKernelNet, PeLK, SLaK

MODELS.register_module('AllReduceBN', module=AllReduceBatchNorm2d)

__all__ = ['LargeKernelNet', 'PeLK', 'SLaK']
