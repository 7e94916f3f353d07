"""The networks in plain PyTorch: nothing here needs OpenMMLab. :mod:`pelk_mm.models` registers them for MMEngine."""

from .growing import ConvNeXtWeights, compare_features, convnext_state_dict, grow_convnext, grown_state_dict
from .large_kernel_net import LargeKernelNet
from .pelk import PeLK
from .slak import SLaK

__all__ = [
    'ConvNeXtWeights', 'LargeKernelNet', 'PeLK', 'SLaK', 'compare_features', 'convnext_state_dict', 'grow_convnext',
    'grown_state_dict'
]
