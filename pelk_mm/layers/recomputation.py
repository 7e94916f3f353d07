"""Detect forward passes repeated by activation checkpointing, so that they count no statistics again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import nn


def in_recomputation() -> bool:
    """Return whether this forward pass is a repetition, which runs inside a backward pass.

    This holds for every kind of activation checkpointing: ``torch.utils.checkpoint``, reentrant or not, MMEngine's
    ``activation_checkpointing`` and ``checkpoint_wrapper``. A compiled model repeats without this code.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of every BatchNorm in ``module``; only copies of them are updated."""
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
    """Decorate a module's method that computes its output, so that a repetition counts no statistics again."""

    @wraps(forward)
    def counting_once(self, *args, **kwargs):
        if in_recomputation():
            with statistics_kept(self):
                return forward(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    return counting_once
