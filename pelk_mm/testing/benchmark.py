"""Timing for the benchmarks: paired runs, device events, inputs larger than the caches, an environment stamp.

Typical use, on any device::

    inputs = rotating(lambda seed: draw(seed), device)
    times = time_paired({'fast': run_fast, 'dense': run_dense}, inputs, device)
    report = dict(environment=environment(device), times={name: vars(time) for name, time in times.items()})
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import random
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

T = TypeVar('T')

# Of a spin kernel; only has to be at least the real clock for the spin to be at least as long as asked.
_SPIN_CYCLES_PER_SECOND = 2e9


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median (float): Median over the rounds.
        low (float): Lower quartile.
        high (float): Upper quartile.
        rounds (int): Number of rounds.
        calls (int): Calls per round; a round's time is divided by it.
    """

    median: float
    low: float
    high: float
    rounds: int
    calls: int

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.high - self.low) / self.median

    def to_dict(self, batch: int) -> dict[str, Any]:
        """Return the attributes, the spread, and images per second where a call takes so many."""
        return dict(vars(self), spread=self.spread, images_per_second=batch / self.median)


def rotating(make: Callable[[int], T], device: str | torch.device, limit: int = 64) -> list[T]:
    """Draw enough input sets that going round them leaves none in the device's last-level cache.

    Args:
        make (Callable[[int], T]): Makes the input set of a seed: a tensor, or a nest of tuples, lists and dicts.
        device (str | torch.device): Where the inputs are; on the CPU a single set is made, as its caches are part of
            what a user sees there.
        limit (int): At most this many sets. Defaults to 64.

    Returns:
        list[T]: At least one set.
    """
    sets = [make(0)]
    device = torch.device(device)
    if device.type == 'cuda':
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        size = sum(leaf.nbytes for leaf in tree_leaves(sets[0]) if isinstance(leaf, Tensor))
        wanted = -(-3 * cache // max(size, 1)) + 1
        sets += [make(seed) for seed in range(1, min(limit, wanted))]
    return sets


def time_paired(runs: Mapping[str, Callable[[T], Any]],
                inputs: Sequence[T],
                device: str | torch.device,
                *,
                seconds: float = 1.0,
                min_rounds: int = 9,
                max_rounds: int = 200,
                limit: float = math.inf,
                hide_launches: bool = True) -> dict[str, Timing]:
    """Time several functions in one run: every round times each of them once, in a new order; drift hits all alike.

    Each is warmed up first (compilation, plans, allocator). Check what they compute before timing them.

    Args:
        runs (Mapping[str, Callable]): Name -> function of one input set. Results are dropped.
        inputs (Sequence): Input sets, see :func:`rotating`; call i gets set i modulo their number.
        device (str | torch.device): CUDA is timed with events, all else with the wall clock.
        seconds (float): Wanted duration of all rounds of one function. Defaults to 1.
        min_rounds (int): Rounds at least, even if they take longer. Defaults to 9.
        max_rounds (int): Rounds at most. Defaults to 200.
        limit (float): Seconds after which no further round begins, even if that leaves fewer than ``min_rounds``; the
            first always runs. Defaults to no limit.
        hide_launches (bool): On CUDA, let the device wait until a round's calls are queued, so that the time is the
            device's and not that of launching; False times both, as a user meets them. Defaults to True.

    Returns:
        dict[str, Timing]: In the order of ``runs``.
    """
    device = torch.device(device)
    timer = _CudaTimer(device, hide_launches) if device.type == 'cuda' else _WallTimer()
    calls = {}
    start = time.perf_counter()
    for name, run in runs.items():
        once = timer.round(run, inputs, 1)
        if time.perf_counter() - start < limit / 2:
            once = timer.round(run, inputs, 1)
        # A round is long against the timer's resolution, yet short enough to be queued completely.
        calls[name] = max(1, min(100, round(timer.shortest_round / max(once, 1e-9))))
        if calls[name] > 1:
            timer.round(run, inputs, calls[name])
    rounds = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    order, shuffle = list(runs), random.Random(0).shuffle
    while len(next(iter(rounds.values()), ())) < max_rounds:
        # Whoever comes after the same neighbour each time would always find its caches.
        shuffle(order)
        for name in order:
            rounds[name].append(timer.round(runs[name], inputs, calls[name]) / calls[name])
        now = time.perf_counter()
        if now > end and len(rounds[name]) >= min_rounds or now - start > limit:
            break
    places = torch.tensor((0.25, 0.5, 0.75), dtype=torch.float64)
    quarters = {name: torch.tensor(times, dtype=torch.float64).quantile(places).tolist()
                for name, times in rounds.items()}
    return {name: Timing(median, low, high, len(rounds[name]), calls[name])
            for name, (low, median, high) in quarters.items()}


def peak_memory(run: Callable[[], Any], device: str | torch.device) -> int | None:
    """Return the largest number of bytes in use during ``run``, its result included, on top of those in use before.

    On CUDA it is PyTorch's allocations; on the CPU the resident memory of the process, on Linux. None elsewhere.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != 'cpu' or platform.system() != 'Linux':
        return None
    # What was freed, but not given back, would not be counted when it is used again.
    if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
        libc.malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')
    before = _process_bytes('VmRSS')
    # Held until the peak is read.
    result = run()
    peak = _process_bytes('VmHWM')
    del result
    return peak - before


def environment(device: str | torch.device) -> dict[str, Any]:
    """Return the environment that a result depends on: device, versions, flags, the commit. JSON-ready."""
    device = torch.device(device)
    stamp = dict(
        device=str(device),
        device_name=_cpu_name(),
        python=platform.python_version(),
        platform=platform.platform(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        commit=_commit(),
        allow_tf32=dict(matmul=torch.backends.cuda.matmul.allow_tf32, cudnn=torch.backends.cudnn.allow_tf32),
        cudnn_benchmark=torch.backends.cudnn.benchmark)
    for package in ('triton', 'mmcv', 'onedl-mmcv', 'mmpretrain', 'onedl-mmpretrain'):
        with suppress(metadata.PackageNotFoundError):
            stamp[package] = metadata.version(package)
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        stamp.update(
            device_name=properties.name,
            capability=f'{properties.major}.{properties.minor}',
            multiprocessors=properties.multi_processor_count,
            l2_bytes=properties.L2_cache_size,
            memory_bytes=properties.total_memory,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version())
    return stamp


def save_report(report: Mapping[str, Any], path: Path) -> None:
    """Write results as JSON, over a file that is there. The folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1), encoding='utf-8')


def why_no_device(device: str | torch.device) -> str | None:
    """Return why nothing can be measured on ``device``, for the result's place; None if it can."""
    if torch.device(device).type == 'cuda' and not torch.cuda.is_available():
        return 'not measured: no CUDA device'
    return None


class _WallTimer:
    shortest_round = 0.02

    def round(self, run: Callable, inputs: Sequence, calls: int) -> float:
        start = time.perf_counter()
        for index in range(calls):
            run(inputs[index % len(inputs)])
        return time.perf_counter() - start


class _CudaTimer:
    shortest_round = 0.005

    def __init__(self, device: torch.device, hide_launches: bool) -> None:
        self.device, self.hide_launches = device, hide_launches
        self.queueing: dict[Callable, float] = {}

    def round(self, run: Callable, inputs: Sequence, calls: int) -> float:
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            if self.hide_launches:
                seconds = min(2 * self.queueing.get(run, 0.0) * calls, 0.5)
                torch.cuda._sleep(int(seconds * _SPIN_CYCLES_PER_SECOND))
            queued = time.perf_counter()
            start.record()
            for index in range(calls):
                run(inputs[index % len(inputs)])
            end.record()
            # From the rounds before: the next spin lasts about twice as long as its calls take to queue.
            self.queueing[run] = (time.perf_counter() - queued) / calls
            end.synchronize()
            return start.elapsed_time(end) / 1e3


def _process_bytes(name: str) -> int:
    """Return ``VmRSS``, which the process holds in memory now, or ``VmHWM``, the most it held since that was reset."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _cpu_name() -> str:
    info = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').is_file() else ''
    model = re.search(r'^model name\s*: (.+)$', info, re.MULTILINE)
    return f'{model[1] if model else platform.processor() or platform.machine()} ({os.cpu_count()} cores)'


def _commit() -> str | None:
    try:
        result = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=Path(__file__).parent,
                                capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
