from .class_count import ClassCountHook
from .dynamic_sparsity import DynamicSparsityHook

__all__ = ['ClassCountHook', 'DynamicSparsityHook']
