"""Registered engine parts; configs name them with the prefix ``pelk_mm.``."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.engine')

from ..checkpoints.hook import AtomicCheckpointHook
from ..checkpoints.pretrained import PretrainedBackbone
from .hooks import (
    CheckFiniteHook,
    ClassCountHook,
    DynamicSparsityHook,
    FinishedRunHook,
    LoadWeightsHook,
    PreemptionHook,
    ResizePositionBiasHook,
)
from .loops import ResumableEpochBasedTrainLoop, ResumableIterBasedTrainLoop
from .optimizers import LayerDecayOptimWrapperConstructor
from .sharding import wrap_types

# The name of 0.1.0.
WholeCheckpointHook = AtomicCheckpointHook

__all__ = [
    'AtomicCheckpointHook', 'CheckFiniteHook', 'ClassCountHook', 'DynamicSparsityHook', 'FinishedRunHook',
    'LayerDecayOptimWrapperConstructor', 'LoadWeightsHook', 'PreemptionHook', 'PretrainedBackbone',
    'ResizePositionBiasHook', 'ResumableEpochBasedTrainLoop', 'ResumableIterBasedTrainLoop', 'WholeCheckpointHook',
    'wrap_types'
]
