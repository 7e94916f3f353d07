"""Real trainings that are killed, asked to end, or run out of disk space, and go on with --resume."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from mmengine.device import get_device

from pelk_mm.checkpoints.loading import checkpoint_error, safe_load
from pelk_mm.testing.forks import ForkServer
from pelk_mm.testing.processes import free_port

from ..helpers.equality import assert_same

FAULTS = Path(__file__).with_name('faults')
INTERVAL = 5
KILLS, KILLS_WHILE_WRITING = 20, 5
# Seconds in which a training must have come to what is waited for; it takes about ten.
LIMIT = 900

pytestmark = [pytest.mark.skipif(get_device() != 'cpu', reason='bit for bit on the CPU only'), pytest.mark.slow]


class Training:
    """A process of tools/train.py, or of two by tools/dist_train.sh, in its own process group.

    Args:
        server (ForkServer, optional): Where one process is started; by default it is a new Python.
        root (Path): The repository.
        log (Path): What it prints.
        work_dir (Path): Work directory.
        *arguments (str): For the tool.
        fault (str): What goes wrong in it, see faults/toy.py.
        fault_rank (int): Where.
        two (bool): Whether two processes train.
        file_limit (int, optional): Bytes that a file may have.
    """

    def __init__(self, server, root, log, work_dir, *arguments, fault='', fault_rank=0, two=False, file_limit=None):
        tool = [root / 'tools/dist_train.sh', FAULTS / 'config.py', 2] if two else [
            root / 'tools/train.py', FAULTS / 'config.py']
        command = [str(part) for part in [*tool, '--work-dir', work_dir, *arguments]]
        variables = dict(
            PYTHON=sys.executable,
            PYTHONPATH=f'{root}:{FAULTS}',
            PYTHONUNBUFFERED='1',
            OMP_NUM_THREADS='1',
            FAULT=fault,
            FAULT_RANK=str(fault_rank),
            PORT=str(free_port()))
        self.log = log
        if server and not two:
            self.process = server.start(command, log, variables, file_limit)
            return
        with log.open('wb') as file:
            self.process = subprocess.Popen(
                ['bash' if two else sys.executable, *command],
                env=os.environ | variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True)

    def wait_for(self, text: str, count: int = 1) -> None:
        """Until the text has come so often; fails if the process ends before."""
        deadline = time.monotonic() + LIMIT
        while self.output.count(text) < count:
            # In this order: what it has written last counts.
            ended = self.process.poll() is not None
            if (ended or time.monotonic() > deadline) and self.output.count(text) < count:
                raise AssertionError(f'{text!r} does not come:\n{self.output}')
            time.sleep(0.002)

    def send(self, number: int, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> int:
        """The exit code, negative after a signal."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'it does not end:\n{self.output}') from None

    def clean_up(self) -> None:
        """End what a test that failed has left."""
        # Of two processes SIGKILL reaches none: each has a group of its own, and gets SIGTERM handed on, or SIGKILL
        # half a minute later.
        for number, patience in ((signal.SIGTERM, 60), (signal.SIGKILL, None)):
            if self.process.poll() is None:
                self.send(number, group=True)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)

    @property
    def output(self) -> str:
        return self.log.read_text(errors='replace')

    @property
    def lines(self) -> list:
        return self.output.splitlines(keepends=True)

    @property
    def resumed_at(self) -> int:
        """The iteration that it went on from, 0 if it started from the beginning."""
        found = re.search(r'resumed epoch: \d+, iter: (\d+)', self.output)
        return int(found.group(1)) if found else 0

    @property
    def steps(self) -> int:
        return self.output.count('step\n')


def checkpoints(work_dir) -> dict:
    return {int(path.stem.partition('_')[2]): path for path in work_dir.glob('iter_*.pth')}


def assert_same_state(path, other) -> None:
    assert checkpoint_error(path) is None
    one, other = (safe_load(str(file), 'cpu') for file in (path, other))
    assert one['meta']['iter'] == other['meta']['iter']
    for entry in ('state_dict', 'optimizer', 'param_schedulers', 'dynamic_sparsity'):
        assert_same(one[entry], other[entry], entry)


@contextmanager
def starting(server, root, logs):
    """A function that starts trainings, of which none outlives the context."""
    trainings = []

    def start(*args, **kwargs):
        trainings.append(Training(server, root, logs / f'{len(trainings)}.log', *args, **kwargs))
        return trainings[-1]

    try:
        yield start
    finally:
        for training in trainings:
            training.clean_up()


@pytest.fixture(scope='module')
def server():
    server = ForkServer('matplotlib.pyplot', 'mmcv.ops', 'pelk_mm.engine.launch', 'pelk_mm.models', 'torch._dynamo')
    yield server
    server.close()


@pytest.fixture
def start(server, root, tmp_path_factory):
    """Start a :class:`Training` in the work directory given first."""
    with starting(server, root, tmp_path_factory.mktemp('logs')) as start:
        yield start


@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
    """Work directory of a training without faults, in a Python of its own: sets have another order in it."""
    work_dir = tmp_path_factory.mktemp('whole')
    with starting(None, root, tmp_path_factory.mktemp('logs')) as start:
        training = start(work_dir)
        assert training.end() == 0, training.output
    return work_dir


def kill_at_random(training: Training, rng: random.Random) -> None:
    """In one of six cases while it starts, else some time after some step."""
    if rng.random() < 1 / 6:
        time.sleep(rng.uniform(0, 0.5))
    else:
        training.wait_for('step\n', rng.randint(1, 12))
        time.sleep(rng.uniform(0, 0.03))
    training.send(signal.SIGKILL)


def test_killed_twenty_times_training_ends_as_if_it_had_not_been(start, tmp_path, whole):
    rng = random.Random(5)
    while_writing = rng.sample(range(KILLS), KILLS_WHILE_WRITING)
    shares = [0, 0.3, 0.6, 0.99, 1]
    reached, whole_before, parts_before = 0, set(), {}
    for number in range(KILLS):
        fault = ''
        if number in while_writing:
            fault = f'write:{rng.randint(1, 2)}:{shares.pop()}'
        training = start(tmp_path, '--resume', fault=fault)
        if not fault:
            kill_at_random(training, rng)
        assert training.end() == -signal.SIGKILL, training.output
        if training.steps:
            # Of the steps that were done no more than the interval are done again. The last that was begun does not
            # count as done: it was not, or it was and even its checkpoint was there before the next one began.
            assert -1 <= reached - training.resumed_at <= INTERVAL, training.output
            reached = training.resumed_at + training.steps - 1
            assert all(str(part) in training.output for part in parts_before)
        parts = {path: path.read_bytes() for path in tmp_path.glob('*.partial_*')}
        assert parts.items() >= parts_before.items()
        assert len(parts) - len(parts_before) >= bool(fault)
        saved = {path for path in checkpoints(tmp_path).values() if checkpoint_error(path) is None}
        assert saved >= whole_before
        assert len(saved) == len(checkpoints(tmp_path))
        whole_before, parts_before = saved, parts
    training = start(tmp_path, '--resume')
    assert training.end() == 0, training.output
    assert not shares
    assert len(parts_before) >= KILLS_WHILE_WRITING
    expected = checkpoints(whole)
    assert sorted(expected) == list(range(INTERVAL, 221, INTERVAL))
    assert checkpoints(tmp_path).keys() == expected.keys()
    for iteration, path in checkpoints(tmp_path).items():
        assert_same_state(path, expected[iteration])
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_220.pth')


def test_a_checkpoint_that_last_checkpoint_does_not_name_yet_is_found(start, tmp_path):
    training = start(tmp_path, fault='pointer:3')
    assert training.end() == -signal.SIGKILL
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_10.pth')
    training = start(tmp_path, '--resume', fault='raise:1')
    training.end()
    assert training.resumed_at == 15


def test_a_half_written_file_is_reported_skipped_and_kept(start, tmp_path, whole):
    for iteration in (10, 15, 20):
        (tmp_path / f'iter_{iteration}.pth').write_bytes((whole / f'iter_{iteration}.pth').read_bytes())
    # As MMEngine by itself leaves it; and one byte that a disk or a copy got wrong.
    half = (tmp_path / 'iter_20.pth').read_bytes()[:100_000]
    (tmp_path / 'iter_20.pth').write_bytes(half)
    wrong = bytearray((tmp_path / 'iter_15.pth').read_bytes())
    wrong[100_000] ^= 1
    (tmp_path / 'iter_15.pth').write_bytes(wrong)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_20.pth'))

    for name in ('iter_15', 'iter_20'):
        training = start(tmp_path, '--resume', str(tmp_path / f'{name}.pth'))
        assert training.end() == 1
        assert training.lines[-1].startswith(f'ValueError: --resume: {tmp_path}/{name}.pth is damaged, ')
        assert f'{tmp_path}/iter_10.pth' in training.lines[-1]

    training = start(tmp_path, '--resume', fault='term:11')
    assert training.end() == 75, training.output
    assert training.resumed_at == 10
    assert f'{tmp_path}/iter_20.pth is damaged, its end is missing' in training.output
    assert re.search(rf'{tmp_path}/iter_15.pth is damaged, .*/data/\d+ in it has a wrong checksum', training.output)
    assert (tmp_path / 'iter_20.pth.damaged_1').read_bytes() == half
    assert (tmp_path / 'iter_15.pth.damaged_1').read_bytes() == wrong
    for iteration in (15, 20):
        assert_same_state(tmp_path / f'iter_{iteration}.pth', whole / f'iter_{iteration}.pth')


def test_a_full_disk_is_reported_with_the_last_undamaged_checkpoint(start, tmp_path, whole):
    limit = (whole / 'iter_15.pth').stat().st_size * 2 // 3
    training = start(tmp_path, file_limit=limit)
    assert training.end() == 1
    assert f'{tmp_path}/iter_5.pth could not be written; ' in training.lines[-1]
    assert 'There is no checkpoint yet. Make room, and go on with --resume' in training.lines[-1]

    assert start(tmp_path, '--resume', fault='term:12').end() == 75
    training = start(tmp_path, '--resume', file_limit=limit)
    assert training.end() == 1
    last = training.lines[-1]
    assert last.startswith(f'OSError: [Errno 27] File too large. {tmp_path}/iter_15.pth could not be written; ')
    assert re.search(rf'; [\d.]+ MiB are free in {tmp_path}\. The last checkpoint, {tmp_path}/iter_12.pth, is '
                     r'undamaged\. Make room, and go on with --resume', last)
    assert sorted(checkpoints(tmp_path)) == [5, 10, 12]
    assert not list(tmp_path.glob('*.partial_*'))

    assert start(tmp_path, '--resume', fault='term:3').end() == 75
    assert_same_state(tmp_path / 'iter_15.pth', whole / 'iter_15.pth')


def test_sigterm_saves_in_the_middle_of_an_epoch_and_training_goes_on_exactly(start, tmp_path, whole):
    training = start(tmp_path, fault='term:13')
    assert training.end() == 75
    message = f'SIGTERM: training stops after iteration 13. {tmp_path}/iter_13.pth is saved. Go on with --resume'
    assert message in training.lines[-1]
    assert training.steps == 13
    training = start(tmp_path, '--resume', fault='term:7')
    assert training.end() == 75
    assert training.resumed_at == 13
    assert_same_state(tmp_path / 'iter_20.pth', whole / 'iter_20.pth')


def test_sigterm_to_a_process_group_leaves_the_loaders_at_work(start, tmp_path, whole):
    training = start(tmp_path, '--cfg-options', 'train_dataloader.num_workers=2')
    training.wait_for('step\n', 12)
    training.send(signal.SIGTERM, group=True)
    assert training.end() == 75, training.output
    last = max(checkpoints(tmp_path))
    assert last >= 12
    assert_same_state(tmp_path / 'iter_10.pth', whole / 'iter_10.pth')


def test_sigterm_to_one_or_all_of_two_processes_stops_both_after_the_same_step(start, tmp_path):
    at_once, stopped = tmp_path / 'at_once', tmp_path / 'stopped'
    training = start(at_once, two=True)
    training.wait_for('Saving checkpoint at 15')
    training.send(signal.SIGTERM)
    assert training.end() == 75, training.output
    found = re.search(r'training stops after iteration (\d+)\. .* is saved. Go on with --resume', training.output)
    assert found, training.output
    # How many steps later depends on the machine.
    assert int(found.group(1)) >= 15

    training = start(stopped, fault='term:13', fault_rank=1, two=True)
    training.end()
    assert training.steps == 2 * 13
    assert f'training stops after iteration 13. {stopped}/iter_13.pth is saved' in training.output
    # Those that ask each other seldom do so before every checkpoint.
    seldom = ('--cfg-options', 'custom_hooks.1.interval=50')
    training = start(stopped, '--resume', *seldom, fault='term:5', fault_rank=1, two=True)
    assert training.end() == 75, training.output
    assert training.resumed_at == 13
    last = int(re.search(r'training stops after iteration (\d+)', training.output).group(1))
    assert 18 <= last <= 20
    assert training.steps == 2 * (last - 13)
    assert checkpoint_error(stopped / f'iter_{last}.pth') is None
    assert_same_state(stopped / 'iter_15.pth', at_once / 'iter_15.pth')


def test_a_process_that_fails_ends_the_other_and_its_error_comes_first_and_last(start, tmp_path):
    training = start(tmp_path, fault='raise:7', fault_rank=1, two=True)
    assert training.end() == 1
    errors = re.findall(r'^(?:\[rank(\d)\]: )?(?:ValueError|RuntimeError): .*', training.output, re.MULTILINE)
    assert errors[0] == '1'
    root_cause = training.output.partition('Root Cause (first observed failure):')[2]
    assert re.search(r'rank +: 1 ', root_cause)
    assert 'ValueError: the fault that was asked for' in root_cause
    assert sorted(checkpoints(tmp_path)) == [5]
    assert checkpoint_error(tmp_path / 'iter_5.pth') is None
