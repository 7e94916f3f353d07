"""Registered engine parts; configs name them with the prefix ``pelk_mm.``."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.engine')

from .hooks import (
    CheckFiniteHook,
    ClassCountHook,
    DynamicSparsityHook,
    FinishedRunHook,
    LoadWeightsHook,
    PreemptionHook,
    ResizePositionBiasHook,
    WholeCheckpointHook,
)
from .loops import ResumableEpochBasedTrainLoop, ResumableIterBasedTrainLoop
from .optimizers import LayerDecayOptimWrapperConstructor
from .pretrained import PretrainedBackbone
from .sharding import wrap_types

__all__ = [
    'CheckFiniteHook', 'ClassCountHook', 'DynamicSparsityHook', 'FinishedRunHook',
    'LayerDecayOptimWrapperConstructor', 'LoadWeightsHook', 'PreemptionHook', 'PretrainedBackbone',
    'ResizePositionBiasHook', 'ResumableEpochBasedTrainLoop', 'ResumableIterBasedTrainLoop', 'WholeCheckpointHook',
    'wrap_types'
]
