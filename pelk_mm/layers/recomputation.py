"""Forward passes that activation checkpointing repeats, and the statistics that they must not count again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import nn


def in_recomputation() -> bool:
    """Whether this forward pass is a repetition: one that runs inside a backward pass.

    So it is with every kind of activation checkpointing: ``torch.utils.checkpoint``, reentrant or not, MMEngine's
    ``activation_checkpointing`` and ``checkpoint_wrapper``. A compiled model repeats without this code.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of every BatchNorm in ``module`` as they are; copies of them are updated."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    buffers = [norm._buffers.copy() for norm in norms]
    for norm in norms:
        norm._buffers.update({name: buffer if buffer is None else buffer.clone()
                              for name, buffer in norm._buffers.items()})
    try:
        yield
    # The repetition may end early, by an exception of PyTorch's.
    finally:
        for norm, kept in zip(norms, buffers):
            norm._buffers.update(kept)


def count_statistics_once(forward: Callable) -> Callable:
    """Decorate a method of a module that computes its output: a repetition of it counts no statistics again."""

    @wraps(forward)
    def counting_once(self, *args, **kwargs):
        if in_recomputation():
            with statistics_kept(self):
                return forward(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    return counting_once
