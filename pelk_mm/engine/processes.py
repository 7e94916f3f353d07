"""Set up each of several processes before it trains or tests, and end it and those that load its data afterwards."""

from __future__ import annotations

import datetime
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from torch.utils.data import DataLoader

from .nodes import use_reachable_interface
from .sharding import FSDP_STRATEGIES

# Seconds after which a collective without all processes is an error: the network is cut, or a machine is gone. The
# longest normal wait is for process 0, which computes metrics and writes checkpoints.
TIMEOUT = 600

_LOOK_FOR_LAUNCHER_SECONDS = 1.0
_LOOK_FOR_PARENT_SECONDS = 5.0


def prepare_processes(cfg: Config, launcher: str) -> None:
    """Set up this process as one of several, started by ``'pytorch'`` (torchrun), ``'slurm'`` or ``'mpi'``.

    In the config, which is changed in place, ``env_cfg.dist_cfg.timeout`` becomes 600 seconds unless it is set.

    Raises:
        ValueError: If the config or the environment is wrong.
    """
    dist_cfg = _dist_cfg_of(cfg)
    timeout = dist_cfg.setdefault('timeout', TIMEOUT)
    if timeout is not None and (isinstance(timeout, (bool, str)) or not timeout > 0):
        raise ValueError(f'env_cfg.dist_cfg.timeout must be a positive number of seconds, got {timeout!r}')
    # MMEngine warns before it sets the same.
    for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(variable, '1')
    if launcher == 'pytorch':
        use_reachable_interface()
        if 'TORCHELASTIC_RUN_ID' in os.environ:
            threading.Thread(target=_end_with_launcher, args=(os.getppid(), ), daemon=True).start()
    if get_device() == 'cpu':
        prepare_cpu_processes(cfg, launcher)


def prepare_cpu_processes(cfg: Config, launcher: str) -> None:
    """Join a gloo process group and make the config run in it, in place: MMEngine assumes a GPU for every process.

    SyncBN has no CPU kernel and becomes AllReduceBN, which computes the same with plain collectives and whose weights
    have the same names and shapes.

    Raises:
        ValueError: If the launcher is not ``'pytorch'``.
    """
    if launcher != 'pytorch':
        raise ValueError(f'without a GPU, --launcher must be "pytorch" (torchrun, as tools/dist_train.sh does), got '
                         f'{launcher!r}')
    dist_cfg = _dist_cfg_of(cfg)
    dist_cfg['backend'] = 'gloo'
    timeout = dist_cfg.get('timeout')
    # Imported later, as the first wrapped model does, its functions have the group as a default and keep it for good.
    import_module('torch.distributed.nn.functional')
    with naming_the_port():
        torch.distributed.init_process_group('gloo', timeout=timeout and datetime.timedelta(seconds=timeout))
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    if 'strategy' in cfg:
        _keep_strategy_off_gpus(cfg.strategy)
    cfg.sync_bn = None
    replaced = 0
    for layer in nested_dicts(cfg.model):
        if layer.get('type') in ('SyncBN', 'MMSyncBN'):
            layer['type'] = 'pelk_mm.AllReduceBN'
            replaced += 1
    print_log(
        f'No GPU: {torch.distributed.get_world_size()} processes on the CPU with gloo; {replaced} SyncBN '
        'of the model become AllReduceBN.',
        logger='current')


@contextmanager
def naming_the_port() -> Iterator[None]:
    """Say which variable sets the port that another training has taken."""
    try:
        yield
    except RuntimeError as error:
        if 'EADDRINUSE' not in str(error):
            raise
        port = os.environ.get('MASTER_PORT')
        raise RuntimeError(f'MASTER_PORT={port} is taken on this machine, perhaps by another training: set MASTER_PORT '
                           'to another port, the same for every process') from error


def _keep_strategy_off_gpus(strategy: dict) -> None:
    """Change, in place, the settings of a strategy of ``FlexibleRunner`` that assume GPUs."""
    wrapper = strategy.setdefault('model_wrapper', {})
    if strategy['type'] not in FSDP_STRATEGIES:
        wrapper.update(device_ids=None)
        return
    wrapper.update(device_id='cpu')
    if strategy.get('state_dict_cfg') == 'full':
        # As 'full', but PyTorch crashes when it moves weights to the CPU that are there.
        strategy['state_dict_cfg'] = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True))


def leave_processes() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # What holds the group beside PyTorch itself goes first, as DDP's wrapper does, so that gloo's threads end with
        # it. One that gives a tensor back to Python when the interpreter has begun to end aborts the process.
        gc.collect()
        torch.distributed.destroy_process_group()


def _dist_cfg_of(cfg: Config) -> dict:
    """Return the part of a config for the communication of processes; add it if it is missing."""
    if not cfg.get('env_cfg'):
        cfg.env_cfg = dict()
    if not cfg.env_cfg.get('dist_cfg'):
        cfg.env_cfg.dist_cfg = dict(backend='nccl')
    return cfg.env_cfg.dist_cfg


def _end_with_launcher(launcher: int) -> None:
    """Send this process SIGTERM when torchrun is gone: whoever killed that wants its processes to end, too."""
    while os.getppid() == launcher:
        time.sleep(_LOOK_FOR_LAUNCHER_SECONDS)
    print_log('torchrun, which has started this process, was killed: SIGTERM', logger='current')
    os.kill(os.getpid(), signal.SIGTERM)


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


def nested_dicts(node) -> Iterator[dict]:
    """Yield every dict of a nested config, the outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from nested_dicts(child)
