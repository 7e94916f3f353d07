"""The automatic choice on GPUs, with a pretended device: which backend runs, and how often something is timed."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pelk_mm.ops.peripheral_conv2d import backends, box_sums, measured_choice, reference
from pelk_mm.ops.peripheral_conv2d.agreement import MAX_ERRORS, difference, max_error
from pelk_mm.ops.peripheral_conv2d.backends import Backend, select_backend
from pelk_mm.ops.peripheral_conv2d.measured_choice import Choice
from pelk_mm.testing.cases import GRIDS

GRID = GRIDS['k3']


class Device:
    """Backends of given times, and a log of all calls with the shape of x."""

    def __init__(self, driver='580', **seconds):
        self.driver, self.times, self.recording, self.log = driver, seconds, False, []
        self.backends = [self.backend(name) for name in seconds]

    def backend(self, name):
        def forward(x, theta, bias, grid):
            self.log.append((name, tuple(x.shape)))
            return reference.forward(x, theta, bias, grid)

        def theta_grad(x, grad_output, grid):
            self.log.append((name, tuple(x.shape)))
            return reference.theta_grad(x, grad_output, grid)

        return Backend(name, reference.why_not, forward, theta_grad)

    def describe(self):
        return ['a GPU', self.driver]

    def seconds(self, run):
        run()
        name, shape = self.log[-1]
        self.log[-1] = f'timed {name}', shape
        return self.times[name] * shape[0]

    def is_recording(self):
        return self.recording

    def timed(self):
        return [(name[6:], *shape) for name, shape in self.log if name.startswith('timed')]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('PELK_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('PELK_MM_AUTOTUNE', raising=False)
    return tmp_path / 'cache'


def pick(choice, shape=(2, 4, 9, 9), grid=GRID, function='forward', dtype=torch.float32):
    return choice.pick(choice.device.backends, function, torch.ones(shape, dtype=dtype), grid).name


def test_the_first_call_of_a_regime_times_each_backend_once():
    device = Device(slow=2.0, fast=1.0, reference=1.5)
    choice = Choice(device)
    assert pick(choice) == 'fast'
    # One image first, for all but the first backend.
    assert device.timed() == [('slow', 2, 4, 9, 9), ('fast', 1, 4, 9, 9), ('fast', 2, 4, 9, 9),
                              ('reference', 1, 4, 9, 9), ('reference', 2, 4, 9, 9)]
    count = len(device.log)
    assert pick(choice) == pick(choice, (2, 3, 16, 11)) == 'fast'
    assert len(device.log) == count
    others = (dict(shape=(2, 4, 17, 9)), dict(shape=(2, 4, 9, 17)), dict(shape=(4, 4, 9, 9)), dict(grid=GRIDS['k13']),
              dict(dtype=torch.bfloat16))
    for other in others:
        before = len(device.timed())
        assert pick(choice, **other) == 'fast'
        assert len(device.timed()) > before


def test_the_dense_path_is_taken_where_it_is_the_fastest():
    device = Device(own=2.0, reference=1.0)
    assert pick(Choice(device)) == 'reference'
    device.times.update(own=0.5)
    # Kept: what was measured holds until the device or the driver changes.
    assert pick(Choice(device)) == 'reference'
    device.driver = '590'
    assert pick(Choice(device)) == 'own'


def test_a_dense_call_that_would_take_long_is_timed_on_one_image(cache):
    device = Device(own=1.0, reference=10**6)
    assert pick(Choice(device), (8, 4, 9, 9)) == 'own'
    assert device.timed() == [('own', 8, 4, 9, 9), ('reference', 1, 4, 9, 9)]
    (file, ) = cache.iterdir()
    assert list(json.loads(file.read_text())['seconds'].values()) == [dict(own=8.0, reference=None)]


def test_times_are_kept_between_processes(cache):
    device = Device(own=1.0, reference=2.0)
    first, second = Choice(device), Choice(device)
    # Both have read the folder before either writes.
    assert pick(first) == pick(second, (2, 4, 33, 33)) == 'own'
    assert pick(first, (2, 4, 65, 65)) == 'own'
    count = len(device.timed())
    later = Choice(device)
    for side in (9, 33, 65):
        assert pick(later, (2, 4, side, side)) == 'own'
    assert len(device.timed()) == count
    assert [file.name.startswith('times-') for file in cache.iterdir()] == [True]
    # A backend that is new has to be timed.
    device.times['newer'] = 0.5
    device.backends.insert(0, device.backend('newer'))
    assert pick(Choice(device)) == 'newer'


@pytest.mark.parametrize('content', ['', '{"seconds": {"a": ', '[]', '{"seconds": {"REGIME": {"own": "x"}}}',
                                     '{"seconds": {"REGIME": 3}}', '\0'])
def test_a_damaged_file_is_replaced(cache, content):
    device = Device(own=1.0, reference=2.0)
    assert pick(Choice(device)) == 'own'
    (file, ) = cache.iterdir()
    right = json.loads(file.read_text())
    file.write_text(content.replace('REGIME', next(iter(right['seconds']))))
    device.log.clear()
    assert pick(Choice(device)) == 'own'
    assert device.timed()
    assert json.loads(file.read_text()) == right


def test_a_folder_that_cannot_be_written_costs_time_only(cache):
    cache.write_text('a file')
    device = Device(own=1.0, reference=2.0)
    choice = Choice(device)
    assert pick(choice) == 'own'
    count = len(device.timed())
    assert pick(choice) == 'own'
    assert len(device.timed()) == count


def wrong(x, theta, bias, grid):
    return reference.forward(x, theta, bias, grid) * 1.001


def broken(x, theta, bias, grid):
    raise ImportError('no compiler')


@pytest.mark.parametrize(('forward', 'message'), [(wrong, r'differs from the reference by 1\.0e-03, at most 1e-05'),
                                                  (broken, 'does not run: ImportError: no compiler')])
@pytest.mark.parametrize('autotune', ['0', '1'])
def test_a_wrong_or_broken_kernel_is_switched_off_with_one_warning(forward, message, autotune, monkeypatch):
    monkeypatch.setenv('PELK_MM_AUTOTUNE', autotune)
    device = Device(own=1.0, reference=2.0)
    device.backends.insert(0, Backend('bad', reference.why_not, forward, reference.theta_grad))
    choice = Choice(device)
    with pytest.warns(UserWarning, match=rf"(?s)'bad' .*off.*{message}.*report.*forward torch.float32.*a GPU"):
        assert pick(choice) == 'own'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert pick(choice) == pick(choice, (2, 4, 40, 40)) == pick(choice, function='theta_grad') == 'own'
    # The file does not say so: with its fault gone it is used again.
    device.backends[0], device.times['bad'] = device.backend('bad'), 0.1
    assert pick(Choice(device)) == 'bad'


def test_nothing_runs_while_the_device_is_recording():
    device = Device(own=2.0, reference=1.0)
    choice = Choice(device)
    device.recording = True
    assert pick(choice) == 'own'
    assert device.log == []
    device.recording = False
    assert pick(choice) == 'reference'
    device.log.clear()
    device.recording = True
    assert pick(choice) == pick(Choice(device)) == 'reference'
    assert device.log == []


def test_without_timing_the_order_of_the_table_decides(monkeypatch, cache):
    device = Device(own=2.0, reference=1.0)
    choice = Choice(device)
    assert pick(choice) == 'reference'
    device.log.clear()
    torch.use_deterministic_algorithms(True)
    try:
        assert pick(choice) == 'own'
    finally:
        torch.use_deterministic_algorithms(False)
    assert pick(choice) == 'reference'
    monkeypatch.setenv('PELK_MM_AUTOTUNE', '0')
    assert pick(choice) == pick(Choice(device), (2, 4, 50, 50)) == 'own'
    assert device.timed() == []


def test_without_memory_for_timing_the_order_decides(cache):
    device = Device(own=2.0, reference=1.0)

    def seconds(run):
        raise torch.OutOfMemoryError('full')

    device.seconds = seconds
    assert pick(Choice(device)) == 'own'
    assert not cache.exists()


def test_select_backend_asks_on_cuda_devices_only(monkeypatch):
    device = Device(own=2.0, reference=1.0)
    choice = Choice(device)
    monkeypatch.setattr(measured_choice, 'on', lambda device: choice)
    monkeypatch.setattr(backends, 'BACKENDS', {backend.name: backend for backend in device.backends})
    real = torch.ones(2, 4, 9, 9)

    class Pretended(SimpleNamespace):
        def __getattr__(self, name):
            return getattr(real, name)

        def __len__(self):
            return len(real)

        def __getitem__(self, index):
            return real[index]

    x = Pretended(device=SimpleNamespace(type='cuda'))
    monkeypatch.setattr(choice, 'pick', lambda able, *call: able[-1])
    monkeypatch.setattr(measured_choice, 'difference', lambda *call: 0.0)
    assert select_backend('auto', 'forward', x, GRID).name == 'reference'
    assert select_backend('own', 'forward', x, GRID).name == 'own'
    device.backends[0] = replace(device.backends[0], by_name_only=True)
    monkeypatch.setattr(backends, 'BACKENDS', {backend.name: backend for backend in device.backends})
    monkeypatch.setattr(choice, 'pick', lambda able, *call: able[0])
    assert select_backend('auto', 'forward', x, GRID).name == 'reference'
    choice._switched_off['own'] = 'it is wrong'
    with pytest.raises(RuntimeError, match="'own' of peripheral_conv2d cannot run here: it is wrong"):
        select_backend('own', 'forward', x, GRID)
    assert select_backend('own', 'forward', real, GRID).name == 'own'


def test_a_backend_that_follows_tf32_may_have_its_error(monkeypatch):
    exact = Backend('exact', box_sums.why_not, box_sums.forward, box_sums.theta_grad)
    follows = replace(exact, follows_tf32=True)
    for allowed, expected in ((True, 2e-3), (False, 1e-5)):
        monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', allowed)
        assert [max_error(backend, torch.float32) for backend in (exact, follows)] == [1e-5, expected]
        assert max_error(follows, torch.bfloat16) == MAX_ERRORS[torch.bfloat16]


@pytest.mark.parametrize('function', ['forward', 'theta_grad'])
@pytest.mark.parametrize('dtype', MAX_ERRORS, ids=str)
def test_the_comparison_passes_what_is_right_and_finds_one_wrong_plane(function, dtype):
    right = Backend('box_sums', box_sums.why_not, box_sums.forward, box_sums.theta_grad)
    x = torch.ones(3, 2, 11, 300).to(dtype).contiguous(memory_format=torch.channels_last)
    seed, state = torch.initial_seed(), torch.get_rng_state()
    assert difference(right, function, x, GRIDS['k13']) < MAX_ERRORS[dtype] / 2

    def spoiled(run):
        def call(*args):
            out = run(*args)
            out[-1, -1, -1] *= 1.5
            return out

        return call

    bad = Backend('bad', right.why_not, spoiled(right.forward), spoiled(right.theta_grad))
    assert difference(bad, function, x, GRIDS['k13']) > MAX_ERRORS[dtype]
    assert torch.initial_seed() == seed
    assert torch.equal(torch.get_rng_state(), state)
