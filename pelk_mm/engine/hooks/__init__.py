from .dynamic_sparsity import DynamicSparsityHook

__all__ = ['DynamicSparsityHook']
