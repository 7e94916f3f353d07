"""Measurements that survive interruption: each result is written at once, and what is there is not measured again.

Typical use, in a benchmark on a device that is there for minutes::

    measurements = Measurements(file, device, limit=450, log=print)
    measurements.run_once('copy 1 GB', time_copy, 2**30)
    measurements.finish()
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .benchmark import environment, save_report, why_no_device

# A result depends on these entries of the environment.
_SAME = ('device_name', 'torch', 'cuda', 'commit')


class Measurements:
    """Results by name in a JSON file, ``{"environment": ..., "results": {name: ...}}``.

    A file of another device, version of PyTorch or commit is kept beside it, as ``<name>.old``.

    Args:
        file (Path): The file.
        device (str | torch.device): The device that is measured.
        limit (float): Seconds after which nothing more is begun.
        log (Callable[[str], None]): Receives a line for each measurement.
    """

    def __init__(self, file: Path, device: str | torch.device, limit: float, log: Callable[[str], None]) -> None:
        self.file, self.device, self.log = Path(file), torch.device(device), log
        self.end = time.monotonic() + limit
        self.report: dict[str, Any] = dict(environment=environment(device), results={})
        self.left: list[str] = []
        with suppress(FileNotFoundError):
            self._resume(self.file.read_text('utf-8'))

    def run_once(self, name: str, measure: Callable[..., Any], *args: Any, needs: float = 0.0) -> Any:
        """Return the result of a name: from the file, or by a call that is written at once; None if no time is left.

        The result of a call that raises is ``{"failed": reason}``. One that ends the process, or does not end, has
        such a result too and is not tried again: delete its entry to repeat it.

        Args:
            name (str): Unique in the file.
            measure (Callable): Returns what JSON can hold.
            *args: Its arguments.
            needs (float): Seconds that have to be left to begin. Defaults to 0.

        Raises:
            SystemExit: If the device cannot be used any more after an error.
        """
        results = self.report['results']
        if name in results:
            return results[name]
        if time.monotonic() + needs > self.end:
            self.left.append(name)
            return None
        results[name] = dict(failed='it did not end: the process was killed')
        self._save()
        start = time.monotonic()
        try:
            results[name] = measure(*args)
        except Exception as error:
            results[name] = dict(failed=f'{type(error).__name__}: {str(error)[:500]}')
        self._save()
        self.log(f'{time.monotonic() - start:6.1f} s  {name}: {json.dumps(results[name])[:300]}')
        self._recover()
        return results[name]

    def finish(self) -> None:
        """Log how many have failed, and how many are left for the next call."""
        results = self.report['results']
        failed = [name for name, result in results.items() if isinstance(result, dict) and 'failed' in result]
        self.log(f'{len(results)} results in {self.file}, {len(failed)} failed: {", ".join(failed) or "-"}')
        if self.left:
            self.log(f'{len(self.left)} are left: run the same command again')

    def _resume(self, text: str) -> None:
        try:
            found = json.loads(text)
            same = all(found['environment'].get(key) == self.report['environment'].get(key) for key in _SAME)
            results = dict(found['results'])
        except (ValueError, LookupError, TypeError, AttributeError):
            same, results = False, {}
        if same:
            self.report['results'] = results
        else:
            os.replace(self.file, self.file.with_name(f'{self.file.name}.old'))

    def _save(self) -> None:
        scratch = self.file.with_name(f'{self.file.name}.part')
        save_report(self.report, scratch)
        os.replace(scratch, self.file)

    def _recover(self) -> None:
        """Free what a failed call has left, and end the process if the device is lost."""
        if self.device.type != 'cuda':
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise SystemExit(f'the device is lost ({error}); run the same command again, the rest is measured then') \
                from error


def step_parser(description: str | None, name: str, on_cpu: bool = False) -> argparse.ArgumentParser:
    """Return the parser of the arguments that all steps of ``tools/benchmarks/gpu.sh`` have.

    Args:
        description (str, optional): The step's docstring.
        name (str): The step; names its file.
        on_cpu (bool): Whether the step also measures on a CPU. Defaults to False.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--device', default='cuda',
                        help='cuda or cpu' if on_cpu else 'cpu only with --tiny, to try the code')
    parser.add_argument('--json', type=Path, default=Path(f'docs/benchmarks/gpu/{name}.json'), metavar='FILE',
                        help='results, written after each; what is there is not measured again')
    parser.add_argument('--limit', type=float, default=440.0, metavar='SECONDS', help='begin nothing after this time')
    parser.add_argument('--tiny', action='store_true', help='smallest settings: tries the code, measures nothing')
    return parser


def open_measurements(args: argparse.Namespace, log: Callable[[str], None], seconds: float = 20.0,
                      fastest: bool = True) -> Measurements | None:
    """Prepare the measurements of a step, with TF32 off.

    Args:
        args (argparse.Namespace): Of a parser of :func:`step_parser`. Its ``rounds`` become arguments of
            :func:`~.benchmark.time_paired`: one round if ``tiny``, else at least five if there is time.
        log (Callable[[str], None]): Receives a line for each measurement, or why nothing can be measured.
        seconds (float): After this time no further round begins. Defaults to 20.
        fastest (bool): Whether cuDNN tries which of its algorithms is the fastest. Defaults to True.

    Returns:
        Measurements | None: None if there is no such device.
    """
    if reason := why_no_device(args.device):
        log(reason)
        return None
    torch.backends.cudnn.benchmark = fastest
    torch.backends.cudnn.allow_tf32 = False
    args.rounds = dict(min_rounds=1, max_rounds=1) if args.tiny else dict(min_rounds=5, limit=seconds)
    return Measurements(args.json, args.device, args.limit, log)
