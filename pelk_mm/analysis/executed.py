"""Count operations a backend executes, not dense MACs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pelk_mm.layers import PeripheralConv2d
from pelk_mm.ops import SharingGrid
from pelk_mm.ops.peripheral_conv2d.operations import Operations, executed_operations


class Call(NamedTuple):
    """A call of a peripheral convolution: the module's name, its input on the meta device, its grid."""

    name: str
    x: Tensor
    grid: SharingGrid


@contextmanager
def record_calls(model: nn.Module) -> Iterator[list[Call]]:
    """Record every call of a :class:`pelk_mm.layers.PeripheralConv2d` of ``model``, on any device, in this context."""
    calls: list[Call] = []

    def record(name: str, module: PeripheralConv2d, x: Tensor) -> None:
        calls.append(Call(name, torch.empty_strided(x.shape, x.stride(), device='meta'), module.grid))

    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: record(name, module, args[0]))
        for name, module in model.named_modules() if isinstance(module, PeripheralConv2d)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def count_operations(calls: Iterable[Call], backend: str) -> dict[str, Operations]:
    """Count what a backend executes in these calls, by name of the module.

    Args:
        calls (Iterable[Call]): From :func:`record_calls`.
        backend (str): See :func:`pelk_mm.ops.peripheral_conv2d.operations.executed_operations`. Its
            operations are counted, also if another one ran.

    Raises:
        ValueError: If there is no such backend.
    """
    operations: dict[str, Operations] = defaultdict(Operations)
    for call in calls:
        operations[call.name] += executed_operations(backend, call.x, call.grid)
    return operations
