"""The networks in plain PyTorch: nothing here needs OpenMMLab. :mod:`pelk_mm.models` registers them for MMEngine."""

from .large_kernel_net import LargeKernelNet
from .pelk import PeLK
from .slak import SLaK

__all__ = ['LargeKernelNet', 'PeLK', 'SLaK']
