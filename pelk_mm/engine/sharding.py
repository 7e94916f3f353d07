"""What FSDP, through MMEngine's FlexibleRunner, needs to know of a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pelk_mm.registry import FUNCTIONS


# The first name is what configs of 0.1.0 say.
@FUNCTIONS.register_module(name=['wrap_types', 'class_name_wrap_policy'])
def class_name_wrap_policy(module: nn.Module, recurse: bool, nonwrapped_numel: int,
                           types: Sequence[str]) -> bool:
    """An ``auto_wrap_policy`` of FSDP: every module whose class has one of these names is a unit of its own.

    The weights of a unit are gathered when it runs and let go afterwards. PyTorch's own policies take classes, which a
    config cannot hold.

    Args:
        module (nn.Module): The module in question.
        recurse (bool): Whether FSDP asks if it should look inside, rather than wrap.
        nonwrapped_numel (int): Number of weights that are in no unit yet.
        types (Sequence[str]): Names of classes, ``'LargeKernelBlock'`` for the backbones here.
    """
    return recurse or type(module).__name__ in types
