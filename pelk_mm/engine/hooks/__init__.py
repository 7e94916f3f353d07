from .check_finite import CheckFiniteHook
from .class_count import ClassCountHook
from .dynamic_sparsity import DynamicSparsityHook
from .finished_run import FinishedRunHook
from .load_weights import LoadWeightsHook
from .position_bias import ResizePositionBiasHook
from .preemption import PreemptionHook

__all__ = [
    'CheckFiniteHook', 'ClassCountHook', 'DynamicSparsityHook', 'FinishedRunHook', 'LoadWeightsHook', 'PreemptionHook',
    'ResizePositionBiasHook'
]
