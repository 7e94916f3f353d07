"""Exit codes and messages of tools/_torchrun.py, with scripts that only end."""

import os
import runpy
import signal
import socket
import time

import pytest

from pelk_mm.testing.forks import ForkServer
from pelk_mm.testing.processes import free_port

SCRIPT = '''
import os, signal, sys, time
codes, ready = [int(code) for code in sys.argv[1].split(',')], sys.argv[2]
code = codes[int(os.environ['RANK'])]
if code == 99:
    # Ends with 75 when it is asked, as a training does.
    signal.signal(signal.SIGTERM, lambda *args: os._exit(75))
elif code == 98:
    signal.signal(signal.SIGTERM, lambda *args: os._exit(1))
open(f'{ready}.{os.environ["RANK"]}', 'w').close()
while code >= 97:
    # Not once for long: a signal just before would be handled when that ends.
    time.sleep(0.1)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
'''


@pytest.fixture(scope='module')
def server():
    server = ForkServer('torch.distributed.run', 'torch.distributed.elastic.rendezvous.c10d_rendezvous_backend')
    yield server
    server.close()


@pytest.fixture
def launch(server, root, tmp_path):
    """Start launches of the script, whose processes end with the given codes."""
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    started = []

    def launch(codes, node=0, nodes=1, port=None, options=(), **variables):
        command = [
            root / 'tools/_torchrun.py', f'--nnodes={nodes}', f'--node_rank={node}',
            '--master_addr=127.0.0.1', f'--master_port={port or free_port()}',
            f'--nproc_per_node={len(codes.split(",")) // nodes}', *options, script, codes, tmp_path / 'ready'
        ]
        log = tmp_path / f'{len(started)}.log'
        started.append((server.start(command, log, variables), log))
        return started[-1]

    yield launch
    for process, _ in started:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)


def end(launched):
    process, log = launched
    return process.wait(200), log.read_text()


def wait_for(*paths):
    deadline = time.monotonic() + 200
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(('codes', 'expected'), [
    ([75], True),
    ([75, 75], True),
    # It has saved, and the launcher ends it while it ends.
    ([75, -15], True),
    # Asked to end before it could save.
    ([-15], False),
    ([-15, -15], False),
    ([75, 1], False),
    ([75, -9], False),
    ([1], False),
    ([], False),
])
def test_which_exit_codes_mean_that_all_have_saved(root, codes, expected):
    asked_to_end = runpy.run_path(str(root / 'tools/_torchrun.py'))['asked_to_end']
    assert asked_to_end(codes) is expected


@pytest.mark.parametrize(('codes', 'expected'), [('75,99', 75), ('75,97', 75), ('1,99', 1), ('-15,97', 1)])
def test_75_is_returned_where_every_failure_is_75(launch, codes, expected):
    code, output = end(launch(codes))
    assert code == expected, output
    assert ('ChildFailedError' in output) == (expected == 1)


@pytest.mark.parametrize(('codes', 'expected'), [('99,99', 75), ('97,97', 75), ('98,99', 1)])
def test_of_sigterm_75_is_returned_unless_a_process_failed(launch, tmp_path, codes, expected):
    process, log = launch(codes)
    wait_for(tmp_path / 'ready.0', tmp_path / 'ready.1')
    os.kill(process.pid, signal.SIGTERM)
    code, output = end((process, log))
    assert code == expected, output
    assert ('SIGTERM: not every process has saved a checkpoint and ended, exit codes [1, 75]' in output) == bool(
        expected == 1)


@pytest.mark.parametrize('codes', ['1,97', '97,1'])
def test_a_node_that_fails_ends_one_that_waits(launch, codes):
    port = free_port()
    patience = dict(TORCH_ELASTIC_SHUTDOWN_TIMEOUT='2')
    nodes = [launch(codes, node=node, nodes=2, port=port, **patience) for node in range(2)]
    ends = [end(node) for node in nodes]
    assert [code for code, _ in ends] == [1, 1]
    waiting = codes.split(',').index('97')
    assert 'Another node has failed: the processes of this one are ended' in ends[waiting][1]
    assert 'Another node has failed' not in ends[1 - waiting][1]


def test_a_port_that_is_taken_is_named_as_the_scripts_name_it(launch):
    with socket.socket() as other:
        other.bind(('', free_port()))
        other.listen()
        port = other.getsockname()[1]
        code, output = end(launch('0', port=port))
    assert code == 1
    assert output.startswith(f'PORT={port} is taken on this machine')
    assert f'PORT={port + 1}' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize(('address', 'hint'), [('', True), ('127.0.0.1', False)])
def test_nodes_say_where_they_wait(launch, address, hint):
    port = free_port()
    nodes = [launch('0,0', node=node, nodes=2, port=port, MASTER_ADDR=address) for node in range(2)]
    for number, (code, output) in enumerate(map(end, nodes)):
        assert code == 0
        assert output.startswith(f'Node {number}: waiting for 2 nodes at 127.0.0.1:{port}')
        assert ('MASTER_ADDR is not set' in output) == hint


@pytest.mark.parametrize('node', [0, 1])
def test_nodes_that_do_not_meet_say_so(launch, node):
    port = free_port()
    code, output = end(launch('0,0', node=node, nodes=2, port=port, options=['--rdzv_conf=timeout=2']))
    assert code == 1
    assert f'The 2 nodes have not met at 127.0.0.1:{port} within ' in output
    assert 'Start all of them with the same NNODES, MASTER_ADDR and PORT' in output


def test_one_node_says_nothing(launch):
    assert end(launch('0')) == (0, '')


@pytest.mark.parametrize(('node', 'nodes'), [(2, 2), (-1, 2), (1, 1)])
def test_a_wrong_node_rank_is_refused(launch, node, nodes):
    code, output = end(launch(','.join('0' * nodes), node=node, nodes=nodes))
    assert code == 1
    assert output == f'NODE_RANK must be from 0 to NNODES - 1, which is {nodes - 1}, got {node}\n'
