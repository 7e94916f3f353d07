"""Shared parts of tests: processes that end together, and equality of checkpoints."""

import re
import socket
import subprocess
from collections import OrderedDict

import pytest
import torch

from pelk_mm.testing.forks import ForkServer
from pelk_mm.testing.processes import free_port, run_ranks

from .helpers.equality import assert_same

SCRIPT = '''
import sys, time
rank, code, seconds = (int(value) for value in sys.argv[1:])
print('from', rank, flush=True)
time.sleep(seconds)
sys.exit(f'failure of {rank}' if code == 1 else code)
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    return path


def test_output_of_ranks_is_returned(script, tmp_path):
    assert run_ranks(script, [(0, 0, 0), (1, 0, 1)], tmp_path) == ['from 0\n', 'from 1\n']
    assert run_ranks(script, [(0, 1, 1), (1, 1, 0)], tmp_path, exit_code=1) == [
        'from 0\nfailure of 0\n', 'from 1\nfailure of 1\n'
    ]


@pytest.mark.parametrize(('arguments', 'timeout', 'message'), [
    ((1, 1, 3), 900, r'not all end with exit code 0:\n---- process 0, still runs:\nfrom 0\n\n'
     r'---- process 1, exit code 1:\nfrom 1\nfailure of 1\n$'),
    ((1, 7, 3), 900, r'not all end with exit code 0:\n.*process 1, exit code 7:\n'),
    ((1, 0, 0), 5, r'not all have ended after 5 s:\n---- process 0, still runs:\nfrom 0\n\n'
     r'---- process 1, exit code 0:\nfrom 1\n$'),
])
def test_no_rank_outlives_a_failure(script, tmp_path, monkeypatch, arguments, timeout, message):
    started = []

    class Popen(subprocess.Popen):

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, 'Popen', Popen)
    with pytest.raises(AssertionError) as error:
        run_ranks(script, [(0, 0, 3000), arguments], tmp_path, timeout=timeout)
    assert re.match(message, str(error.value), re.DOTALL)
    # Not three thousand seconds later.
    assert started[0].returncode == -9


def test_forks_are_programs_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'beside.py').write_text('import os; name = os.environ["NAME"]')
    script, log, other = tmp_path / 'script.py', tmp_path / 'log', tmp_path / 'other'
    script.write_text("""
import os, sys, time
before = 'decimal' in sys.modules
import beside
if beside.name == 'a':
    raise ValueError('wrong')
print(__name__, before, sys.argv[1:], beside.name, os.getcwd(), os.getsid(0) == os.getpid())
with open('large', 'w') as file:
    file.write(10_000 * 'x')
time.sleep(3000)
""")
    server = ForkServer('decimal')
    tools = [server.start([script, 'a b', number], path, dict(NAME=name), file_limit=5000)
             for number, (name, path) in enumerate([('a', log), ('b', other)])]
    assert [tool.wait(100) for tool in tools] == [1, 1]
    assert log.read_text().endswith('ValueError: wrong\n')
    first, *_, last = other.read_text().splitlines()
    assert first == f"__main__ True ['a b', '1'] b {tmp_path} True"
    assert last == 'OSError: [Errno 27] File too large'
    unlimited = server.start([script], log, dict(NAME='c'))
    assert unlimited.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        unlimited.wait(0.1)
    unlimited.kill()
    assert unlimited.wait(100) == unlimited.poll() == -9
    server.close()


def test_ports_are_free_and_no_clients():
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(1024 < port < 32768 for port in ports)
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', ports.pop()))


@pytest.mark.parametrize(('actual', 'expected', 'message'), [
    (dict(a=[1, torch.ones(2)]), dict(a=[1, torch.zeros(2)]), r'^x\.a\.1: other values'),
    (dict(a=torch.ones(2)), dict(a=torch.ones(2).double()), r'^x\.a: torch.float32, expected torch.float64'),
    (dict(a=1), dict(b=1), r"^x: keys \['a'\], expected \['b'\]"),
    ([1, 2], [1], '^x: 2 values, expected 1'),
    ((1, 2), [1, 2], '^x: tuple, expected list'),
    (dict(), OrderedDict(), '^x: dict, expected OrderedDict'),
    (dict(a=(1, 2)), dict(a=(1, 3)), r'^x\.a\.1: 2, expected 3'),
])
def test_differences_are_found_and_placed(actual, expected, message):
    assert_same(actual, actual)
    with pytest.raises(AssertionError, match=message):
        assert_same(actual, expected, 'x')
