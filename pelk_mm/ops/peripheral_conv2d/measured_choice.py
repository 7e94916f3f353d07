"""The automatic choice on GPUs: compare each kernel with the reference before its first use, then time the candidates.

A *regime* is a set of calls that share a choice, see :class:`Regime`. The first call of a regime times every backend
that can run, the dense path included, and later calls take the fastest, so none is slower than the dense path. The
times are kept on disk, beside the native builds (``PELK_MM_CACHE``), one file for each device, driver, version of
PyTorch and source of the backends.

Nothing is timed with ``PELK_MM_AUTOTUNE=0`` or under ``torch.use_deterministic_algorithms(True)``: the order of the
table decides. While a CUDA graph is captured or a compiler traces, nothing runs in addition: known times decide, else
the order of the table.

The processes of a distributed job may choose differently. Their results then differ by rounding, as those of different
images do; gradients are averaged before they are used, so the parameters stay equal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import warnings
from contextlib import suppress
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .agreement import difference, max_error, why_wrong
from .costs import is_channels_last
from .native_build import BuildError, cache_dirs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .backends import Backend

logger = logging.getLogger(__name__)

AUTOTUNE_VARIABLE = 'PELK_MM_AUTOTUNE'
_ROUNDS, _ROUND_SECONDS, _MAX_CALLS = 3, 1e-3, 20


class Device(Protocol):
    """One GPU as the choice sees it; tests replace it."""

    def describe(self) -> list[str]:
        """Return the name first, then everything else that times depend on: driver, versions, sources."""

    def seconds(self, run: Callable[[], Any]) -> float:
        """Return the seconds of one call, after a call to warm up."""

    def is_recording(self) -> bool:
        """Return whether the device's work is recorded rather than run."""


class CudaDevice:
    """A device of PyTorch's CUDA backend, timed by its events on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def describe(self) -> list[str]:
        """Return name, capability, memory, driver, versions, and a digest of the backends' sources."""
        properties = torch.cuda.get_device_properties(self.device)
        driver = [str(getattr(torch._C, '_cuda_getDriverVersion', int)())]
        with suppress(OSError):
            driver.append(Path('/proc/driver/nvidia/version').read_text('utf-8'))
        versions = [torch.__version__, str(torch.version.cuda), str(torch.backends.cudnn.version())]
        with suppress(metadata.PackageNotFoundError):
            versions.append(f'triton {metadata.version("triton")}')
        capability = f'{properties.major}.{properties.minor}'
        return [properties.name, capability, str(properties.total_memory), *driver, *versions, _digest_of_sources()]

    def seconds(self, run: Callable[[], Any]) -> float:
        """Return the least of a few rounds; of one call, if that is long. Waits for the device."""
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

            def measure(calls: int) -> float:
                start.record()
                for _ in range(calls):
                    run()
                end.record()
                # Not of the device: other streams may wait for another process.
                end.synchronize()
                return start.elapsed_time(end) / 1e3 / calls

            run()
            once = measure(1)
            if once > _ROUND_SECONDS * _ROUNDS:
                return once
            calls = max(1, min(_MAX_CALLS, round(_ROUND_SECONDS / max(once, 1e-6))))
            return min(measure(calls) for _ in range(_ROUNDS))

    def is_recording(self) -> bool:
        """Return whether a CUDA graph is captured on the current stream, or a compiler traces."""
        return torch.cuda.is_current_stream_capturing() or torch.compiler.is_compiling()


class Regime(NamedTuple):
    """Calls that share a choice; sides and planes are rounded up to powers of two, so new image sizes are known."""

    function: str
    dtype: torch.dtype
    channels_last: bool
    planes: int
    height: int
    width: int
    half: tuple[int, ...]

    @classmethod
    def of(cls, function: str, x: Tensor, grid: SharingGrid) -> Regime:
        """Return the regime of a call; arguments as :func:`..backends.select_backend`."""
        planes, height, width = (1 << (size - 1).bit_length()
                                 for size in (x.shape[0] * x.shape[1], *x.shape[2:]))
        return cls(function, x.dtype, is_channels_last(x), planes, height, width, tuple(grid.half))

    def __str__(self) -> str:
        layout = 'channels_last' if self.channels_last else 'planes'
        sizes = f'{self.planes}x{self.height}x{self.width}'
        return f'{self.function} {self.dtype} {layout} {sizes} {"-".join(map(str, self.half))}'


class Store:
    """Seconds by regime and backend, on disk. A file that is damaged or cannot be written costs only time.

    Args:
        description (list[str]): Of the device; another one has another file.
    """

    def __init__(self, description: list[str]) -> None:
        self.description = description
        self.name = f'times-{hashlib.sha256(repr(description).encode()).hexdigest()[:16]}.json'
        self.seconds = self._read()

    def add(self, regime: str, seconds: dict[str, float | None]) -> None:
        """Keep the seconds of a regime; None stands for a backend that is too slow to be timed completely."""
        # Other processes may have written since.
        self.seconds = {**self._read(), **self.seconds, regime: seconds}
        text = json.dumps(dict(device=self.description, seconds=self.seconds), indent=1)
        for folder in _folders():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    file = Path(scratch, self.name)
                    file.write_text(text, 'utf-8')
                    os.replace(file, folder / self.name)
                return
            except OSError as error:
                logger.debug('peripheral_conv2d: times are not kept in %s: %s', folder, error)

    def _read(self) -> dict[str, dict[str, float | None]]:
        for folder in _folders():
            try:
                found = json.loads((folder / self.name).read_text('utf-8'))['seconds']
                return {regime: {name: None if value is None else float(value) for name, value in times.items()}
                        for regime, times in found.items()}
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
                logger.debug('peripheral_conv2d: %s is not used: %r', folder / self.name, error)
        return {}


class Choice:
    """The choice on one device, for the life of the process.

    Args:
        device (Device): Times calls.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._store: Store | None = None
        self._chosen: dict[tuple[Regime, tuple[str, ...]], str] = {}
        self._agreed: set[tuple[str, Regime]] = set()
        self._switched_off: dict[str, str] = {}

    def pick(self, backends: Sequence[Backend], function: str, x: Tensor, grid: SharingGrid) -> Backend:
        """Return the backend to use; arguments as :func:`..backends.select_backend`.

        Args:
            backends (Sequence[Backend]): Those that can run, in the order of the table, the reference among them.
            function (str): ``'forward'`` or ``'theta_grad'``.
            x (Tensor): (N, C, H, W), not empty.
            grid (SharingGrid): The cells.
        """
        able = {backend.name: backend for backend in backends if backend.name not in self._switched_off}
        regime, timed = Regime.of(function, x, grid), _may_time()
        key = regime, (*able, *['timed'] * timed)
        if key in self._chosen:
            return able[self._chosen[key]]
        recording = self.device.is_recording()
        seconds = self._seconds(able, regime, x, grid, recording) if timed else {}
        # Equal and unknown times keep the order of the table.
        order = sorted(able, key=lambda name: seconds.get(name) or math.inf)
        name = next(name for name in order if self.why_wrong(able[name], function, x, grid) is None)
        if not recording:
            self._chosen[key] = name
            logger.debug('peripheral_conv2d: %s takes %r of %s', regime, name, seconds or order)
        return able[name]

    def why_wrong(self, backend: Backend, function: str, x: Tensor, grid: SharingGrid) -> str | None:
        """Return why a backend is switched off for this process, or None.

        Its first use in a regime is compared with the reference, unless the device is recording. A warning says once
        why it is switched off.
        """
        key = backend.name, Regime.of(function, x, grid)
        if backend.name in self._switched_off:
            return self._switched_off[backend.name]
        if backend.name == 'reference' or key in self._agreed or self.device.is_recording():
            return None
        try:
            reason = why_wrong(partial(difference, backend, function, x, grid), max_error(backend, x.dtype))
        except torch.OutOfMemoryError:
            return None
        if reason is None:
            self._agreed.add(key)
            return None
        self._switched_off[backend.name] = reason
        warnings.warn(
            f'backend {backend.name!r} of peripheral_conv2d is switched off for this process, a slower one is used: '
            f'{reason}. Please report this, with {key[1]}, x {tuple(x.shape)} of strides {x.stride()}, and '
            f'{"; ".join(self.device.describe())}', stacklevel=2)
        return reason

    def _seconds(self, able: dict[str, Backend], regime: Regime, x: Tensor, grid: SharingGrid,
                 recording: bool) -> dict[str, float | None]:
        """Return the seconds of a regime that are known; measure them if some are missing."""
        if self._store is None:
            self._store = Store(self.device.describe())
        known = self._store.seconds.get(str(regime), {})
        if recording or set(able) <= set(known):
            return known
        seconds: dict[str, float | None] = {}
        try:
            for name, backend in able.items():
                # What is switched off now is timed again in a later process.
                if self.why_wrong(backend, regime.function, x, grid) is None:
                    seconds[name] = self._time(backend, regime.function, x, grid, seconds)
        except torch.OutOfMemoryError as error:
            logger.debug('peripheral_conv2d: %s is not timed: %s', regime, error)
            return {}
        self._store.add(str(regime), seconds)
        return seconds

    def _time(self, backend: Backend, function: str, x: Tensor, grid: SharingGrid,
              others: dict[str, float | None]) -> float | None:
        """Return the seconds of a call; None if one image of it takes longer than another backend's complete call."""
        theta = x.new_zeros(x.shape[1], grid.num_cells, grid.num_cells)

        def run(x: Tensor) -> Tensor:
            return backend.forward(x, theta, None, grid) if function == 'forward' else backend.theta_grad(x, x, grid)

        best = min((seconds for seconds in others.values() if seconds is not None), default=math.inf)
        # A dense call may take seconds.
        if best < math.inf and len(x) > 1 and self.device.seconds(partial(run, x[:1])) > best:
            return None
        return self.device.seconds(partial(run, x))


@cache
def on(device: torch.device) -> Choice:
    """Return the choice on a CUDA device."""
    return Choice(CudaDevice(device))


def _may_time() -> bool:
    return os.environ.get(AUTOTUNE_VARIABLE) != '0' and not torch.are_deterministic_algorithms_enabled()


def _folders() -> list[Path]:
    try:
        return cache_dirs()
    except BuildError as error:
        logger.debug('peripheral_conv2d: times are not kept: %s', error)
        return []


def _digest_of_sources() -> str:
    files = sorted(file for file in Path(__file__).parent.rglob('*') if file.suffix in ('.py', '.cu', '.cuh', '.h'))
    return hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:16]
