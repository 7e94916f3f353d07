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
    KeepPreviousRunHook,
    LoadWeightsHook,
    PreemptionHook,
    ResizePositionBiasHook,
)
from .loops import ResumableEpochBasedTrainLoop, ResumableIterBasedTrainLoop
from .optimizers import LayerDecayOptimWrapperConstructor
from .runners import CheckedFlexibleRunner, CheckedRunner
from .sharding import ResumableFSDPStrategy, class_name_wrap_policy

# Names of 0.1.0.
WholeCheckpointHook, wrap_types = AtomicCheckpointHook, class_name_wrap_policy

__all__ = [
    'AtomicCheckpointHook', 'CheckFiniteHook', 'CheckedFlexibleRunner', 'CheckedRunner', 'ClassCountHook',
    'DynamicSparsityHook', 'FinishedRunHook', 'KeepPreviousRunHook', 'LayerDecayOptimWrapperConstructor',
    'LoadWeightsHook', 'PreemptionHook', 'PretrainedBackbone', 'ResizePositionBiasHook', 'ResumableEpochBasedTrainLoop',
    'ResumableFSDPStrategy', 'ResumableIterBasedTrainLoop', 'WholeCheckpointHook', 'class_name_wrap_policy'
]
