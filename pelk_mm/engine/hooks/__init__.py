from .class_count import ClassCountHook
from .dynamic_sparsity import DynamicSparsityHook
from .preemption import PreemptionHook
from .whole_checkpoint import WholeCheckpointHook

__all__ = ['ClassCountHook', 'DynamicSparsityHook', 'PreemptionHook', 'WholeCheckpointHook']
