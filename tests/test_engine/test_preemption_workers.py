"""Workers that load data outlive the first signal of a stranger, and end with the training, however it ends."""

import signal
import subprocess
import sys

import pytest

SCRIPT = '''
import subprocess, sys
from functools import partial
from torch.utils.data import DataLoader
from pelk_mm.engine.hooks.preemption import _outlive_one_signal

if __name__ == '__main__':
    init = partial(_outlive_one_signal, None)
    loader = DataLoader(range(9), num_workers=1, persistent_workers=True, worker_init_fn=init)
    iterator = iter(loader)
    next(iterator)
    worker, = loader._iterator._workers
    subprocess.run(['kill', '-TERM', str(worker.pid)], check=True)
    print([int(number) for number in iterator], worker.is_alive(), flush=True)
    # What a runner holds is still there when Python ends.
    sys.modules['held'] = iterator
    {end}
'''


@pytest.mark.skipif(not hasattr(signal, 'sigtimedwait'), reason='the system does not tell who sent a signal')
@pytest.mark.parametrize(('end', 'code'), [('pass', 0), ('raise ValueError', 1)])
def test_workers(tmp_path, end, code):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.replace('{end}', end))
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert result.stdout == '[1, 2, 3, 4, 5, 6, 7, 8] True\n', result.stderr
    assert result.returncode == code
