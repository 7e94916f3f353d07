"""Depths of parameters, for backbones of the toolboxes that have no ``get_layer_depth`` of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil

from torch import nn


def find_layer_depth(module: nn.Module) -> Callable | None:
    """Return a module's ``get_layer_depth``, or the one that is written here for its class; None if there is neither.

    It takes ``param_name`` and ``prefix``, and returns the depth and the number of depths.
    """
    own = getattr(module, 'get_layer_depth', None)
    written = (_DEPTHS[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in _DEPTHS)
    return own or next((partial(depth, module) for depth in written), None)


def _replknet_depth(backbone: nn.Module, param_name: str, prefix: str = '') -> tuple[int, int]:
    """Group mmpretrain's RepLKNet as its authors do: 12 groups of 31B and 31L.

    The stem is 0, stages 1 and 2 are one group each, stage 3 is cut into groups of four blocks (two with large kernels,
    two without), the last stage is the last group; a transition belongs to the group before it.
    """
    parts = param_name.removeprefix(prefix).split('.')
    last = 3 + ceil(len(backbone.stages[2].blocks) / 4)
    if parts[0] == 'stem':
        return 0, last + 2
    if parts[0] == 'transitions':
        return (1, 2, last - 1)[int(parts[1])], last + 2
    if parts[0] == 'stages' and parts[2] == 'blocks':
        return (1, 2, 3 + int(parts[3]) // 4, last)[int(parts[1])], last + 2
    return last + 1, last + 2


# Class -> its depths. The type is known by its name: mmpretrain is not imported for it.
_DEPTHS = dict(RepLKNet=_replknet_depth)
