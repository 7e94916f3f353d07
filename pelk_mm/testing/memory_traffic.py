"""Count the bytes that the operators of a network read and write: how much the tensors around a kernel cost.

Typical use, for a block in training::

    with MemoryTraffic(pixels=2 * 56 * 56) as traffic:
        block(x).sum().backward()
    passes = {kind: moved / (x.numel() * x.element_size()) for kind, moved in traffic.bytes.items()}
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# By the name of the operator, without its namespace and its overload.
_KINDS = {
    'op': ('peripheral_conv2d', 'peripheral_conv2d_theta_grad'),
    'convolution': ('convolution', 'convolution_backward'),
    'norm': ('concat_layer_norm', 'native_layer_norm', 'native_layer_norm_backward', 'native_batch_norm',
             'native_batch_norm_backward'),
    'linear': ('addmm', 'mm'),
    'layout': ('cat', 'clone', 'contiguous', 'copy_', 'slice_backward', 'constant_pad_nd'),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_ALLOCATIONS = ('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided')


class MemoryTraffic(TorchDispatchMode):
    """Count the bytes that operators move, by kind.

    Each operator reads its inputs and writes its outputs once; views and allocations move nothing. This is less than
    what is moved by operators that read an input several times, and more where a cache holds a tensor between two.
    Copies within the peripheral convolution, for backends that need another memory format, are counted, and those that
    PyTorch's convolutions make of inputs with gaps.

    The kinds are ``op`` (the peripheral convolution), ``convolution`` (others), ``norm``, ``linear``, ``layout``
    (concatenations, copies, and gradients of slices) and ``elementwise``, which sums are counted as, too.

    Args:
        pixels (int): N * H * W. Only tensors with at least two channels of so many pixels are counted, so no
            parameters, as long as their sizes are no multiples of it.

    Attributes:
        bytes (Counter[str]): By kind.
    """

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._opname
        if func.namespace == 'pelk_mm':
            keys = torch._C._dispatch_keys(args[0]) & torch._C._after_ADInplaceOrView_keyset
            # The mode is on within the operator's Python code.
            with self:
                out = func.redispatch(keys, *args, **kwargs)
        else:
            out = func(*args, **kwargs)
        # contiguous() is said to be a view, but may copy; _unsafe_view is one.
        is_view = func.is_view or name == '_unsafe_view'
        if name in _ALLOCATIONS or is_view and _share_memory(args[0], tree_leaves(out)[0]):
            return out
        inputs = args[1:] if name == 'copy_' else (args, kwargs)
        self._count(_KIND_OF.get(name, 'elementwise'), inputs, out)
        if name in ('convolution', 'convolution_backward'):
            self._count('layout', *2 * [[x for x in tree_leaves(inputs) if isinstance(x, Tensor) and not _is_dense(x)]])
        return out

    def _count(self, kind: str, *tensors: Any) -> None:
        leaves = [leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
        counted = [leaf for leaf in leaves if leaf.numel() > self.pixels and leaf.numel() % self.pixels == 0]
        if moved := sum(map(_bytes, counted)):
            self.bytes[kind] += moved


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """Count the bytes in memory: an expanded dimension is there once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride()) if stride)
    return math.prod(sizes) * tensor.element_size()


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements lie without gaps in one of the memory formats of images."""
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
