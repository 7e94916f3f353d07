"""``nn.Module`` building blocks in plain PyTorch: nothing here needs OpenMMLab."""

from .all_reduce_batch_norm import AllReduceBatchNorm2d
from .branches import DepthwiseBranches
from .conv import Conv2d
from .layer_norm import LayerNorm2d
from .partial import PartialMixer
from .peripheral_conv import PeripheralConv2d
from .position_embedding import KernelPositionEmbedding
from .recomputation import in_recomputation, statistics_kept

__all__ = [
    'AllReduceBatchNorm2d', 'Conv2d', 'DepthwiseBranches', 'KernelPositionEmbedding', 'LayerNorm2d', 'PartialMixer',
    'PeripheralConv2d', 'in_recomputation', 'statistics_kept'
]
