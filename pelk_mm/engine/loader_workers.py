"""Processes that load data, when a cluster sends SIGTERM to their process group."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

_LOOK_FOR_PARENT_SECONDS = 5.0


def let_workers_outlive_one_signal(loader: DataLoader) -> None:
    """Let the workers of a loader continue when SIGTERM is sent to their process group.

    The process that they load for ends them itself, and waits for them. Does nothing where the
    system does not report who has sent a signal (macOS, Windows).

    Args:
        loader (DataLoader): Changed in place, the first time. Workers that it has started already stay as they are.
    """
    # The handler of a signal does not know who sent it. Only systems like Linux report it, to a thread that waits.
    if not getattr(loader, 'num_workers', 0) or not hasattr(signal, 'sigtimedwait'):
        return
    if isinstance(loader.worker_init_fn, partial) and loader.worker_init_fn.func is _start_worker:
        return
    context = loader.multiprocessing_context
    if (context or multiprocessing).get_start_method() == 'fork':
        loader.multiprocessing_context = _deaf_at_the_start()
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)


def _deaf_at_the_start() -> multiprocessing.context.BaseContext:
    """Return a context whose processes start with SIGTERM blocked, until they can find out who sent one."""
    fork = multiprocessing.get_context('fork')
    base: Any = fork.Process

    class Process(base):

        def start(self) -> None:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return type('Context', (type(fork), ), dict(Process=Process))()


def _start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by_signal, args=(os.getppid(), ), daemon=True).start()
    if init is not None:
        init(worker)


def _end_by_signal(parent: int) -> None:
    """End this process on the first SIGTERM of its parent, the second of any other process, or when the parent is gone.

    A worker whose parent was killed may wait forever for somebody to take what it has loaded.
    """
    was_asked = False
    while os.getppid() == parent:
        info = signal.sigtimedwait({signal.SIGTERM}, _LOOK_FOR_PARENT_SECONDS)
        if info is not None:
            if was_asked or info.si_pid == parent:
                break
            was_asked = True
    os._exit(0)
