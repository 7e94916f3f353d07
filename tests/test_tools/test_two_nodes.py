"""Trainings on two nodes: each a network namespace whose host name leads to 127.0.1.1, as on Debian.

Where namespaces cannot be made, the nodes are two launches that meet on loopback.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from mmengine.device import get_device

from pelk_mm.testing.processes import free_port

FAULTS = Path(__file__).with_name('faults')
LIMIT = 300

pytestmark = [pytest.mark.skipif(get_device() != 'cpu', reason='about processes on the CPU'), pytest.mark.slow]


def ip(*arguments):
    subprocess.run(['ip', *map(str, arguments)], check=True, capture_output=True)


class Namespaces:
    """Two network namespaces with one cable between them. Only these are reached."""

    def __init__(self):
        tag = f'pelk{os.getpid() % 100000}'
        self.names = [f'{tag}-{node}' for node in range(2)]
        self.cables = [f'{tag}v{node}' for node in range(2)]
        self.addresses = ['10.213.77.1', '10.213.77.2']
        self.made = []

    def make(self):
        for name in self.names:
            ip('netns', 'add', name)
            self.made.append(name)
        ip('link', 'add', self.cables[0], 'netns', self.names[0], 'type', 'veth', 'peer', 'name', self.cables[1],
           'netns', self.names[1])
        for name, cable, address in zip(self.names, self.cables, self.addresses):
            ip('-n', name, 'address', 'add', f'{address}/24', 'dev', cable)
            for device in ('lo', cable):
                ip('-n', name, 'link', 'set', device, 'up')
            # Mounted over /etc/hosts in the namespace.
            hosts = Path('/etc/netns', name, 'hosts')
            hosts.parent.mkdir(parents=True)
            own = 'node0' if address == self.addresses[0] else ''
            other = '' if own else f'{self.addresses[0]} node0'
            hosts.write_text(f'127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()} {own}\n{other}\n')

    def cut(self):
        ip('-n', self.names[0], 'link', 'set', self.cables[0], 'down')

    def mend(self):
        ip('-n', self.names[0], 'link', 'set', self.cables[0], 'up')

    def remove(self):
        for name in self.made:
            ip('netns', 'delete', name)
        for name in self.names:
            shutil.rmtree(Path('/etc/netns', name), ignore_errors=True)
        with suppress(OSError):
            Path('/etc/netns').rmdir()


@pytest.fixture(scope='module')
def namespaces():
    """None where they cannot be made."""
    if not sys.platform.startswith('linux') or os.geteuid() or not shutil.which('ip'):
        yield None
        return
    spaces = Namespaces()
    try:
        try:
            spaces.make()
        except (OSError, subprocess.CalledProcessError):
            spaces.remove()
            spaces.made = []
            yield None
        else:
            yield spaces
    finally:
        spaces.remove()


class Node:
    """A launch of tools/dist_train.sh with one process."""

    def __init__(self, command, folder, log, environment):
        self.log = log
        with log.open('wb') as file:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def output(self):
        return self.log.read_text(errors='replace')

    def wait_for(self, text, count=1):
        deadline = time.monotonic() + LIMIT
        while self.output.count(text) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f'{text!r} does not come:\n{self.output}')
            time.sleep(0.01)

    def end(self):
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'it does not end:\n{self.output}') from None

    def clean_up(self):
        for number, patience in ((signal.SIGTERM, 60), (signal.SIGKILL, None)):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)


@pytest.fixture
def start(root, namespaces, tmp_path):
    """Start both nodes of a training, in folders of ``tmp_path``. Faults happen to the second one."""
    nodes = []

    def start(*arguments, fault='', folders=('.', '.'), **variables):
        port, pair = free_port(), []
        for rank in range(2):
            folder = tmp_path / folders[rank]
            folder.mkdir(exist_ok=True)
            command = ['ip', 'netns', 'exec', namespaces.names[rank]] if namespaces else []
            command += ['bash', root / 'tools/dist_train.sh', FAULTS / 'config.py', '1', '--work-dir', 'run']
            command += arguments
            environment = dict(
                os.environ,
                PYTHON=sys.executable,
                PYTHONPATH=f'{root}:{FAULTS}',
                PYTHONUNBUFFERED='1',
                OMP_NUM_THREADS='1',
                NNODES='2',
                NODE_RANK=str(rank),
                MASTER_ADDR='node0' if namespaces else '127.0.0.1',
                PORT=str(port),
                FAULT=fault,
                FAULT_RANK='1')
            for name in ('GLOO_SOCKET_IFNAME', 'MKL_NUM_THREADS'):
                environment.pop(name, None)
            environment.update(variables)
            pair.append(Node(list(map(str, command)), folder, tmp_path / f'{len(nodes)}-{rank}.log', environment))
        nodes.extend(pair)
        return pair

    yield start
    for node in nodes:
        node.clean_up()


def saved(folder):
    return {int(path.stem.partition('_')[2]) for path in (folder / 'run').glob('iter_*.pth')}


def test_sigterm_to_a_process_a_node_or_a_killed_launcher_saves_and_ends_both_nodes_with_75(start, tmp_path):
    nodes = start('--resume', fault='term:13')
    assert [node.end() for node in nodes] == [75, 75], nodes[0].output + nodes[1].output
    assert saved(tmp_path) == {5, 10, 13}
    for rank, node in enumerate(nodes):
        assert node.output.count(f'Node {rank}: waiting for 2 nodes at ') == 1
        assert 'Traceback' not in node.output
        assert '_NUM_THREADS' not in node.output

    for asked, number in ((1, signal.SIGTERM), (1, signal.SIGKILL), (0, signal.SIGKILL)):
        before = max(saved(tmp_path))
        nodes = start('--resume')
        nodes[0].wait_for('step\n', 7)
        nodes[asked].process.send_signal(number)
        codes = [75, 75]
        if number == signal.SIGKILL:
            codes[asked] = -number
        assert [node.end() for node in nodes] == codes, nodes[0].output + nodes[1].output
        assert re.search(rf'resumed epoch: \d+, iter: {before}\n', nodes[0].output)
        stopped = int(re.search(r'training stops after iteration (\d+)', nodes[0].output).group(1))
        assert stopped == max(saved(tmp_path)) >= before + 6


def test_one_node_that_fails_ends_the_other_at_once_or_before_they_have_met(start, tmp_path):
    nodes = start(fault='raise:7')
    began = time.monotonic()
    assert [node.end() for node in nodes] == [1, 1]
    assert 'ValueError: the fault that was asked for' in nodes[1].output
    assert time.monotonic() - began < 120
    assert saved(tmp_path) == {5}


def test_a_cut_network_ends_both_nodes_after_the_timeout_and_training_goes_on(start, namespaces, tmp_path):
    if namespaces is None:
        pytest.skip('no network namespaces')
    nodes = start('--cfg-options', 'env_cfg.dist_cfg.timeout=8')
    nodes[0].wait_for('step\n', 12)
    namespaces.cut()
    try:
        began = time.monotonic()
        assert [node.end() for node in nodes] == [1, 1]
        assert 6 < time.monotonic() - began < 60
    finally:
        namespaces.mend()
    last = max(saved(tmp_path))
    assert last >= 10
    nodes = start('--resume', fault='term:2')
    assert [node.end() for node in nodes] == [75, 75], nodes[0].output + nodes[1].output
    assert f'iter: {last}' in nodes[0].output


def test_separate_folders_are_an_error_with_advice_on_both_nodes(start, tmp_path):
    nodes = start(folders=('one', 'two'))
    assert [node.end() for node in nodes] == [1, 1]
    for node in nodes:
        assert f'FileNotFoundError: {tmp_path}/one/run, where checkpoints are written, is not the same' in node.output
        assert f'process 1 ({socket.gethostname()}) cannot see what process 0 writes there' in node.output
        assert 'step\n' not in node.output
