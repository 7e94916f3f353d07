"""Workers that load data outlive the first signal of a stranger, and end with the training, however it ends."""

import signal
import subprocess
import sys

import pytest

SCRIPT = '''
import os, subprocess, sys
from torch.utils.data import DataLoader
from pelk_mm.engine.processes import let_workers_outlive_one_signal

def send_sigterm(process):
    # The sender is another process than the one that the worker loads for.
    subprocess.run(['kill', '-TERM', str(process)], check=True)

if __name__ == '__main__':
    at_start = {at_start}
    loader = DataLoader(range(9), num_workers=1, persistent_workers=True, multiprocessing_context='fork')
    let_workers_outlive_one_signal(loader)
    let_workers_outlive_one_signal(loader)
    if at_start:
        os.register_at_fork(after_in_child=lambda: send_sigterm(os.getpid()))
    iterator = iter(loader)
    next(iterator)
    worker, = loader._iterator._workers
    if not at_start:
        send_sigterm(worker.pid)
    print([int(number) for number in iterator], worker.is_alive(), flush=True)
    # What a runner holds is still there when Python ends.
    sys.modules['held'] = iterator
    {end}
'''


@pytest.mark.skipif(not hasattr(signal, 'sigtimedwait'), reason='the system does not report who sent a signal')
@pytest.mark.parametrize(('end', 'code'), [('pass', 0), ('raise ValueError', 1)])
@pytest.mark.parametrize('at_start', [False, True])
def test_workers(tmp_path, end, code, at_start):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.replace('{end}', end).replace('{at_start}', str(at_start)))
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert result.stdout == '[1, 2, 3, 4, 5, 6, 7, 8] True\n', result.stderr
    assert result.returncode == code
