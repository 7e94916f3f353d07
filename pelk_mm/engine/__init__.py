"""Registered engine parts; configs name them with the prefix ``pelk_mm.``."""

from .hooks import DynamicSparsityHook
from .loops import ResumableEpochBasedTrainLoop, ResumableIterBasedTrainLoop
from .optimizers import LayerDecayOptimWrapperConstructor
from .pretrained import PretrainedBackbone

__all__ = [
    'DynamicSparsityHook', 'LayerDecayOptimWrapperConstructor', 'PretrainedBackbone', 'ResumableEpochBasedTrainLoop',
    'ResumableIterBasedTrainLoop'
]
