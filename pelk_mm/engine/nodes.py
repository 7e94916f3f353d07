"""Find the network interface that reaches the other machines, and check that they share a folder."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mmengine import dist
from mmengine.config import Config
from mmengine.logging import print_log
from torch.distributed import TCPStore

# Linux's ioctl requests for the address and the netmask of an interface.
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B
# A file that another machine has just made may take a moment to show on a network file system.
_PATIENCE_SECONDS = 5.0
_ADDRESS_KEY = 'pelk_mm/address_of_node_1'


def use_reachable_interface() -> None:
    """Let gloo use the network interface that reaches ``MASTER_ADDR``: set ``GLOO_SOCKET_IFNAME``, unless it is set.

    Gloo by itself offers the others the address that this machine's host name resolves to. Debian's ``/etc/hosts``
    makes that 127.0.1.1, which leads each of them to itself. Does nothing where torchrun has started one node only.

    Raises:
        ValueError: If ``GLOO_SOCKET_IFNAME`` is set to an interface that this machine does not have.
    """
    names = [name for _, name in socket.if_nameindex()]
    asked = os.environ.get('GLOO_SOCKET_IFNAME')
    if asked:
        missing = [name for name in asked.split(',') if name not in names]
        if missing:
            raise ValueError(f'GLOO_SOCKET_IFNAME must name network interfaces of this machine ({", ".join(names)}), '
                             f'got {asked!r}')
    if int(os.environ.get('GROUP_WORLD_SIZE', '1')) < 2:
        return
    # Every node takes part, also one that has set it itself: the first may have to ask the second for its address.
    address = _address_towards_others()
    if asked:
        return
    interface = address and _interface_of(address)
    if interface:
        os.environ['GLOO_SOCKET_IFNAME'] = interface
    else:
        print_log(
            f'No network interface was found that reaches MASTER_ADDR={os.environ["MASTER_ADDR"]}. If the nodes do not '
            f'find each other, name one of {", ".join(names)}: GLOO_SOCKET_IFNAME for training without GPUs, '
            'NCCL_SOCKET_IFNAME with GPUs',
            logger='current',
            level=logging.WARNING)


def check_shared_folder(cfg: Config, mode: str) -> None:
    """Check that every process sees the folders that process 0 writes to; all processes call this.

    These are the one of the checkpoints, where ``mode`` is ``'train'``, and the one through which the metrics collect
    predictions. The check is switched off by ``check_shared_folder=False`` in the config.

    Raises:
        FileNotFoundError: In every process, if there is one that does not see them.
    """
    if dist.get_world_size() == 1 or not cfg.get('check_shared_folder', True):
        return
    for use, folder in _shared_folders(cfg, mode):
        written = ['']
        if dist.is_main_process():
            os.makedirs(folder, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix='.seen_by_all_', dir=os.path.abspath(folder), delete=False) as file:
                written = [file.name]
        dist.broadcast_object_list(written)
        blind = _processes_where(not _appears(os.path.join(folder, os.path.basename(written[0]))))
        if dist.is_main_process():
            os.remove(written[0])
        if blind:
            raise FileNotFoundError(
                f'{os.path.dirname(written[0])}, {use}, is not the same folder for every process: {blind} cannot see '
                'what process 0 writes there. Start every node in one folder, and with one --work-dir, that all of '
                'them mount (NFS or another shared file system)')


def check_file_everywhere(argument: str, path: str) -> None:
    """Check that every process has a file that an option or config entry names; all processes call this.

    A URL is left to the loader.

    Raises:
        FileNotFoundError: In every process, if there is one that does not have it.
    """
    missing = _processes_where('://' not in path and not os.path.exists(os.path.expanduser(path)))
    if missing:
        where = '' if dist.get_world_size() == 1 else f', for {missing}'
        raise FileNotFoundError(f'{argument}: no such file, {path}{where}')


def _shared_folders(cfg: Config, mode: str) -> Iterator[tuple[str, str]]:
    """Yield uses and folders, relative to the current one of each process."""
    if mode == 'train':
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        folder = hook.get('out_dir') or cfg.work_dir
        if '://' not in folder:
            yield 'where checkpoints are written', folder
    evaluators = [cfg.get(f'{part}_evaluator') for part in (['val'] if mode == 'train' else ['test'])]
    metrics = [metric for evaluator in evaluators for metric in metrics_of(evaluator)]
    folders = [
        metric.get('collect_dir') or '.dist_test' for metric in metrics if metric.get('collect_device', 'cpu') == 'cpu'
    ]
    for folder in dict.fromkeys(folders):
        yield 'where metrics collect the predictions of all processes', folder


def metrics_of(evaluator: dict | list | tuple | None) -> list[dict]:
    """Return the configs of an evaluator's metrics."""
    if isinstance(evaluator, dict):
        evaluator = evaluator.get('metrics', evaluator)
    return [metric for metric in (evaluator if isinstance(evaluator, (list, tuple)) else [evaluator])
            if isinstance(metric, dict)]


def _appears(path: str) -> bool:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _processes_where(condition: bool) -> str:
    """Name the processes and machines where a condition holds; '' if there are none."""
    found = dist.all_gather_object((condition, socket.gethostname()))
    places = [f'{rank} ({host})' for rank, (holds, host) in enumerate(found) if holds]
    return f'process {", ".join(places)}' if places else ''


def _address_towards_others() -> str | None:
    """Return the address of this machine that the other nodes reach, asked of the system's routing table.

    Node 0 may know itself by 127.0.1.1 only. It then asks for the way to the address that node 1 has used.
    """
    address = _address_towards(os.environ['MASTER_ADDR'])
    node = int(os.environ.get('GROUP_RANK', '0'))
    alone = node == 0 and (address is None or ipaddress.ip_address(address).is_loopback)
    if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True' and (node == 1 or alone):
        store = TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False,
                         wait_for_workers=False)
        if node == 1:
            store.set(_ADDRESS_KEY, address or '')
        else:
            other = store.get(_ADDRESS_KEY).decode()
            address = _address_towards(other) if other else address
    return address


def _address_towards(host: str) -> str | None:
    """Return the address that packets to a host leave this machine with. No packet is sent."""
    try:
        targets = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, target in targets:
        with socket.socket(family, kind, protocol) as connection:
            try:
                connection.connect(target)
            except OSError:
                continue
            return str(connection.getsockname()[0])
    return None


def _interface_of(address: str) -> str | None:
    """Return the network interface that has an address, or whose network contains it; None if it is unknown."""
    wanted = ipaddress.ip_address(address.partition('%')[0])
    # Those with the address itself come first.
    known = sorted(_addresses(), key=lambda pair: pair[0].ip != wanted)
    return next((name for own, name in known if wanted in own.network), None)


def _addresses() -> Iterator[tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, str]]:
    """Return addresses with their networks, and the interfaces that have them. Empty on other systems than Linux."""
    table = Path('/proc/net/if_inet6')
    for line in table.read_text().splitlines() if table.exists() else []:
        digits, _, length, _, _, name = line.split()
        yield ipaddress.IPv6Interface((int(digits, 16), int(length, 16))), name
    try:
        import fcntl
    except ImportError:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack('40s', name.encode())
            try:
                own, mask = (
                    socket.inet_ntoa(fcntl.ioctl(asked, number, request)[20:24])
                    for number in (_SIOCGIFADDR, _SIOCGIFNETMASK))
            except OSError:
                continue
            yield ipaddress.IPv4Interface(f'{own}/{mask}'), name
