"""``nn.Module`` building blocks in plain PyTorch: nothing here needs OpenMMLab."""

from .all_reduce_batch_norm import AllReduceBatchNorm2d
from .branches import ReparamDepthwiseConv
from .conv import Conv2d
from .drop_path import DropPath
from .grn import GRN
from .layer_norm import LayerNorm2d
from .partial import PartialMixer
from .peripheral_conv import PeripheralConv2d
from .position_embedding import KernelPositionEmbedding
from .recomputation import count_statistics_once, in_recomputation, statistics_kept

# Its name in 0.1.0.
DepthwiseBranches = ReparamDepthwiseConv

__all__ = [
    'GRN', 'AllReduceBatchNorm2d', 'Conv2d', 'DropPath', 'KernelPositionEmbedding', 'LayerNorm2d', 'PartialMixer',
    'PeripheralConv2d', 'ReparamDepthwiseConv', 'count_statistics_once', 'in_recomputation', 'statistics_kept'
]
