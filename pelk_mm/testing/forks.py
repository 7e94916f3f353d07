"""Tools in forks of a process that has imported what they need: each starts in a fraction of a second.

As a program, it is that process. It reads requests from its input, a line of JSON each, and answers with such a line.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import site
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ForkServer:
    """Start tools as ``subprocess.Popen`` does, without the seconds that imports take. For Linux and macOS.

    Args:
        *modules (str): To be imported once. None of them may start threads or compute.
    """

    def __init__(self, *modules: str) -> None:
        # A pool of threads would not survive the fork.
        paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH'))))
        environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1', PYTHONPATH=paths)
        self._server = subprocess.Popen([sys.executable, '-m', __name__, *modules], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, command: Sequence[object], log: str | Path, environment: Mapping[str, str],
              file_limit: int | None = None) -> ForkedTool:
        """Run a script as the main program, in a session of its own.

        Args:
            command (Sequence[object]): The script and its arguments.
            log (str | Path): File for what it prints.
            environment (Mapping[str, str]): Variables to set, ``PYTHONPATH`` among them if it has to count.
            file_limit (int, optional): Bytes that a file may have.
        """
        return ForkedTool(self, self.ask(list(map(str, command)), str(log), dict(environment), file_limit, os.getcwd()))

    def ask(self, *request: object) -> Any:
        """Send a request, and return the answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + '\n')
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End the server. Tools that still run go on."""
        self._server.communicate()


class ForkedTool:
    """A process of a :class:`ForkServer`.

    Attributes:
        pid (int): Process, group and session.
        returncode (int | None): Exit code, negative after a signal; None as long as :meth:`poll` has not seen its end.
    """

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Return the exit code, or None if the process runs."""
        if self.returncode is None:
            self.returncode = self._server.ask(self.pid)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when the process has ended.

        Raises:
            subprocess.TimeoutExpired: If it runs for more than ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f'process {self.pid}', timeout or 0)
            time.sleep(0.01)
        return code


def _serve(answers: Any) -> list:
    """Answer requests, and return in a fork with the one that it is for."""
    for line in sys.stdin:
        request = json.loads(line)
        if len(request) > 1:
            # The fork answers, as soon as signals can be sent to its group.
            if not os.fork():
                return request
            continue
        pid, status = os.waitpid(request[0], os.WNOHANG)
        answers.write(f'{json.dumps(os.waitstatus_to_exitcode(status) if pid else None)}\n')
        answers.flush()
    # Nothing is left to be cleaned up.
    os._exit(0)


def _set_up(log: str, environment: dict[str, str], file_limit: int | None, folder: str) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.update(environment)
    # As at a start, except that they come last.
    for path in (os.path.dirname(sys.argv[0]), *environment.get('PYTHONPATH', '').split(os.pathsep)):
        if path:
            site.addsitedir(path)
    if file_limit is not None:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))


if __name__ == '__main__':
    for module in sys.argv[1:]:
        importlib.import_module(module)
    with open(os.dup(1), 'w') as answers:
        # What a module writes to the output is no answer.
        os.dup2(2, 1)
        sys.argv, *settings = _serve(answers)
        _set_up(*settings)
        answers.write(f'{os.getpid()}\n')
    runpy.run_path(sys.argv[0], run_name='__main__')
