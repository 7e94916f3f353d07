"""Start several processes that meet at a port, and end all of them when one fails."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .forks import ForkedTool, ForkServer

_ROOT = Path(__file__).resolve().parents[2]
# Clients and `bind(0)` get the ports above.
_EPHEMERAL = 32768
_LAST_CHARACTERS = 5000
_SERVERS: dict[tuple[str, ...], ForkServer] = {}


def free_port() -> int:
    """Return a port that is not in use, outside the range that systems choose from.

    Draw it just before the launch. Tests that run at the same time draw others: also where seeds were set, as the
    system's own random numbers are taken.
    """
    generator = random.SystemRandom()
    while True:
        port = generator.randrange(20000, _EPHEMERAL)
        with socket.socket() as listener:
            try:
                listener.bind(('', port))
            except OSError:
                continue
            return port


def run_ranks(script: str | Path,
              arguments: Sequence[Sequence[object]],
              folder: str | Path,
              exit_code: int = 0,
              timeout: float = 900,
              modules: Sequence[str] = ()) -> list[str]:
    """Run a script in several processes at the same time, and wait for all.

    Each has one thread for computing and imports the package from where this process has it. When one ends in another
    way than expected, or time is over, all are killed: those that remain may wait for it.

    Args:
        script (str | Path): For this Python.
        arguments (Sequence[Sequence[object]]): Those of each process.
        folder (str | Path): An existing one, in which process ``n`` writes what it prints into ``rank_<n>.log``.
        exit_code (int): What each has to end with. Defaults to 0.
        timeout (float): In seconds, generous for a machine that is busy. Defaults to 900.
        modules (Sequence[str]): To be imported once, for later calls with the same modules too, see
            :class:`ForkServer`. By default each process is a new Python.

    Returns:
        list[str]: The output of each, errors included.

    Raises:
        AssertionError: With what each has printed last.
    """
    paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get('PYTHONPATH'))))
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=paths)
    logs = [Path(folder, f'rank_{rank}.log') for rank in range(len(arguments))]
    ranks: list[subprocess.Popen | ForkedTool] = []
    deadline = time.monotonic() + timeout
    server = _server(*modules) if modules else None
    try:
        for values, log in zip(arguments, logs):
            if server:
                ranks.append(server.start([script, *values], log, environment))
                continue
            command = [sys.executable, str(script), *map(str, values)]
            with log.open('wb') as file:
                ranks.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        while True:
            codes = [rank.poll() for rank in ranks]
            if any(code not in (None, exit_code) for code in codes):
                raise AssertionError(_describe(f'not all end with exit code {exit_code}', codes, logs))
            if None not in codes:
                return [log.read_text(errors='replace') for log in logs]
            if time.monotonic() > deadline:
                raise AssertionError(_describe(f'not all have ended after {timeout:g} s', codes, logs))
            time.sleep(0.02)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def _server(*modules: str) -> ForkServer:
    """Return the server of the last call if it has these modules, else a new one, which ends with this process."""
    if modules not in _SERVERS:
        while _SERVERS:
            _SERVERS.popitem()[1].close()
        _SERVERS[modules] = ForkServer(*modules)
    return _SERVERS[modules]


def _describe(what: str, codes: Sequence[int | None], logs: Sequence[Path]) -> str:
    lines = [f'{what}:']
    for rank, (code, log) in enumerate(zip(codes, logs)):
        state = 'still runs' if code is None else f'exit code {code}'
        lines.append(f'---- process {rank}, {state}:\n{log.read_text(errors="replace")[-_LAST_CHARACTERS:]}')
    return '\n'.join(lines)
