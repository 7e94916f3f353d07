"""Network interfaces and folders that several machines share, and what each process is set up with."""

import datetime
import json
import os
import re
import socket
import sys

import pytest
from mmengine.config import Config
from mmengine.device import get_device

from pelk_mm.engine import nodes, processes
from pelk_mm.engine.nodes import use_reachable_interface
from pelk_mm.engine.processes import TIMEOUT, prepare_processes
from pelk_mm.testing.processes import free_port, run_ranks

needs_no_gpu = pytest.mark.skipif(get_device() != 'cpu', reason='about processes on the CPU')
needs_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads tables of Linux')
INTERFACES = [name for _, name in socket.if_nameindex()]


@pytest.fixture
def environment(monkeypatch):
    """Of a process of node 0 of two, as torchrun sets it."""
    monkeypatch.delenv('GLOO_SOCKET_IFNAME', raising=False)
    # So that it is removed in the end.
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', '')
    for name, value in dict(GROUP_WORLD_SIZE='2', GROUP_RANK='0', MASTER_ADDR='127.0.0.1').items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@needs_linux
def test_an_address_has_its_own_interface_or_that_of_its_network():
    found = [(str(own.ip), name) for own, name in nodes._addresses()]
    assert {name for _, name in found} <= set(INTERFACES)
    for address, interface in (*found, ('127.0.0.1', 'lo'), ('127.0.1.1', 'lo'), ('::1', 'lo')):
        assert nodes._interface_of(address) == interface
    # For documentation only.
    assert nodes._interface_of('203.0.113.7') is None


@needs_linux
def test_the_interface_that_reaches_the_master_is_used(environment):
    use_reachable_interface()
    assert os.environ['GLOO_SOCKET_IFNAME'] == 'lo'


def test_one_node_is_left_to_gloo(environment):
    environment.setenv('GROUP_WORLD_SIZE', '1')
    use_reachable_interface()
    assert os.environ['GLOO_SOCKET_IFNAME'] == ''


def test_an_interface_that_was_chosen_stays_and_one_that_is_not_there_is_named(environment):
    environment.setattr(nodes, '_interface_of', lambda address: 'other')
    environment.setenv('GLOO_SOCKET_IFNAME', INTERFACES[0])
    use_reachable_interface()
    assert os.environ['GLOO_SOCKET_IFNAME'] == INTERFACES[0]
    environment.setenv('GLOO_SOCKET_IFNAME', f'{INTERFACES[0]},eth77')
    with pytest.raises(ValueError, match=rf"interfaces of this machine \({INTERFACES[0]}.*got '{INTERFACES[0]},eth77'"):
        use_reachable_interface()


def test_where_no_interface_is_found_both_variables_are_named(environment):
    messages = []
    environment.setattr(nodes, 'print_log', lambda message, **kwargs: messages.append(message))
    environment.setenv('MASTER_ADDR', 'no-such-host.invalid')
    use_reachable_interface()
    message, = messages
    assert 'MASTER_ADDR=no-such-host.invalid' in message
    assert 'GLOO_SOCKET_IFNAME for training without GPUs, NCCL_SOCKET_IFNAME with GPUs' in message
    assert os.environ['GLOO_SOCKET_IFNAME'] == ''


SHARED = '''
import json, os, sys
from mmengine.config import Config
from pelk_mm.engine import nodes
from pelk_mm.engine.processes import prepare_cpu_processes

rank, port, folder, cases = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
os.makedirs(f'{folder}/{rank}', exist_ok=True)
os.chdir(f'{folder}/{rank}')
prepare_cpu_processes(Config(dict(model=dict())), 'pytorch')
nodes._PATIENCE_SECONDS = 0.5
checks = [(nodes.check_file_everywhere, '--resume', name) for name in ('file', '../both', 's3://bucket/file')]
for mode, options in cases:
    checks.append((nodes.check_shared_folder, Config({'work_dir': 'run', **options}), mode))
results = []
for check, *arguments in checks:
    try:
        results.append(check(*arguments))
    except FileNotFoundError as error:
        results.append(str(error))
print('RESULTS', json.dumps(results))
'''
FOLDERS = {
    'nothing shared': ('train', {}, 'run, where checkpoints are written, '),
    'work_dir': ('train', dict(work_dir='../common'), None),
    'metrics': ('train', dict(work_dir='../common', val_evaluator=dict(type='A')), '.dist_test, where metrics '),
    'by network': ('train', dict(work_dir='../common', val_evaluator=[dict(type='A', collect_device='gpu')]), None),
    'elsewhere': ('train', dict(default_hooks=dict(checkpoint=dict(out_dir='s3://bucket'))), None),
    'no hook': ('train', dict(work_dir='../common', default_hooks=dict(checkpoint=None)), None),
    'switched off': ('train', dict(check_shared_folder=False, val_evaluator=dict(type='A')), None),
    'test': ('test', {}, None),
    'test, parts': ('test', dict(test_evaluator=[dict(type='A', collect_dir='parts')]), 'parts, where metrics '),
    'test, shared': ('test', dict(test_evaluator=dict(metrics=[dict(type='A', collect_dir='../common')])), None),
}


@pytest.fixture(scope='module')
def checked(tmp_path_factory):
    """The folder, and the messages of each check by process."""
    folder = tmp_path_factory.mktemp('nodes')
    script = folder / 'script.py'
    script.write_text(SHARED)
    (folder / '0').mkdir()
    (folder / '0/file').touch()
    (folder / 'both').touch()
    port = free_port()
    cases = json.dumps([case[:2] for case in FOLDERS.values()])
    outputs = run_ranks(script, [(rank, port, folder, cases) for rank in range(2)], folder,
                        modules=('pelk_mm.engine.nodes', 'torch._dynamo'))
    results = [json.loads(re.search('^RESULTS (.*)', output, re.MULTILINE).group(1)) for output in outputs]
    return folder, list(zip(*results))


@needs_no_gpu
@pytest.mark.parametrize(('number', 'name'), list(enumerate(FOLDERS)))
def test_folders_that_are_not_shared_are_refused_by_every_process(checked, number, name):
    folder, results = checked
    refused = FOLDERS[name][2]
    one, other = results[3 + number]
    assert one == other
    if refused is None:
        assert one is None
    else:
        assert one.startswith(f'{folder}/0/{refused}')
        assert f'is not the same folder for every process: process 1 ({socket.gethostname()}) cannot see' in one
    # Nothing is left of the checks.
    assert not list(folder.rglob('.seen_by_all_*'))


@needs_no_gpu
def test_a_file_that_one_process_does_not_have_is_an_error_of_all(checked):
    missing, there, elsewhere = checked[1][:3]
    assert missing == (f'--resume: no such file, file, for process 1 ({socket.gethostname()})', ) * 2
    assert there == elsewhere == (None, None)


@pytest.fixture
def joined(monkeypatch):
    """Calls of what joins the processes and watches over the launcher, which are not made."""
    calls = []
    monkeypatch.setattr(processes, 'prepare_cpu_processes', lambda cfg, launcher: calls.append(launcher))
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'TORCHELASTIC_RUN_ID', 'GROUP_WORLD_SIZE'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    return calls


@needs_no_gpu
@pytest.mark.parametrize(('given', 'timeout'), [
    ({}, TIMEOUT),
    (dict(env_cfg=None), TIMEOUT),
    (dict(env_cfg=dict(cudnn_benchmark=True)), TIMEOUT),
    (dict(env_cfg=dict(dist_cfg=dict(backend='nccl'))), TIMEOUT),
    (dict(env_cfg=dict(dist_cfg=dict(timeout=7200))), 7200),
    (dict(env_cfg=dict(dist_cfg=dict(timeout=None))), None),
])
def test_collectives_have_a_timeout_unless_the_config_has_another(joined, monkeypatch, given, timeout):
    monkeypatch.setenv('MKL_NUM_THREADS', '3')
    cfg = Config(given)
    prepare_processes(cfg, 'pytorch')
    assert cfg.env_cfg.dist_cfg.timeout == timeout
    assert joined == ['pytorch']
    # What MMEngine would set with a warning, but not what is set.
    assert (os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS']) == ('1', '3')


@pytest.mark.parametrize('timeout', [0, -1, '600', True])
def test_other_timeouts_are_refused(joined, timeout):
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(timeout=timeout))))
    with pytest.raises(ValueError, match=f'env_cfg.dist_cfg.timeout must be a positive number .* got {timeout!r}'):
        prepare_processes(cfg, 'pytorch')
    assert joined == []


@needs_no_gpu
def test_the_timeout_reaches_the_process_group(monkeypatch):
    given = {}
    monkeypatch.setattr('torch.distributed.init_process_group', lambda *args, **kwargs: given.update(kwargs))
    monkeypatch.setattr('torch.distributed.get_world_size', lambda: 2)
    processes.prepare_cpu_processes(Config(dict(model=dict(), env_cfg=dict(dist_cfg=dict(timeout=90)))), 'pytorch')
    assert given['timeout'] == datetime.timedelta(seconds=90)


@needs_no_gpu
def test_a_port_that_is_taken_is_named_by_its_variable(monkeypatch):
    with socket.socket() as other:
        other.bind(('', free_port()))
        other.listen()
        port = str(other.getsockname()[1])
        for name, value in dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK='0', WORLD_SIZE='2').items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv('TORCHELASTIC_USE_AGENT_STORE', raising=False)
        with pytest.raises(RuntimeError, match=f'^MASTER_PORT={port} is taken on this machine'):
            processes.prepare_cpu_processes(Config(dict(model=dict())), 'pytorch')
