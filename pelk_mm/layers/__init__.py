"""``nn.Module`` building blocks in plain PyTorch: nothing here needs OpenMMLab."""

from .all_reduce_batch_norm import AllReduceBatchNorm2d
from .branches import DepthwiseBranches
from .layer_norm import LayerNorm2d
from .partial import PartialMixer
from .peripheral_conv import PeripheralConv2d
from .position_embedding import KernelPositionEmbedding

__all__ = [
    'AllReduceBatchNorm2d', 'DepthwiseBranches', 'KernelPositionEmbedding', 'LayerNorm2d', 'PartialMixer',
    'PeripheralConv2d'
]
