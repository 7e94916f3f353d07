"""Registered engine parts; configs name them with the prefix ``pelk_mm.``."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.engine')

from .hooks import (
    CheckFiniteHook,
    ClassCountHook,
    DynamicSparsityHook,
    FinishedRunHook,
    KeepPreviousRunHook,
    LoadWeightsHook,
    PreemptionHook,
    WholeCheckpointHook,
)
from .loops import ResumableEpochBasedTrainLoop, ResumableIterBasedTrainLoop
from .optimizers import LayerDecayOptimWrapperConstructor
from .pretrained import PretrainedBackbone
from .runners import CheckedFlexibleRunner, CheckedRunner
from .sharding import ResumableFSDPStrategy, class_name_wrap_policy

__all__ = [
    'CheckFiniteHook', 'CheckedFlexibleRunner', 'CheckedRunner', 'ClassCountHook', 'DynamicSparsityHook',
    'FinishedRunHook', 'KeepPreviousRunHook', 'LayerDecayOptimWrapperConstructor', 'LoadWeightsHook', 'PreemptionHook',
    'PretrainedBackbone', 'ResumableEpochBasedTrainLoop', 'ResumableIterBasedTrainLoop', 'WholeCheckpointHook',
    'ResumableFSDPStrategy', 'class_name_wrap_policy'
]
