"""Checkpoints are loaded without running code in them, and damage in them is found.

A test that fails because upstream has mended its fault means: remove the patch.
"""

import os
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

from pelk_mm import compat
from pelk_mm.checkpoints import loading, patches
from pelk_mm.checkpoints.atomic import atomic_save
from pelk_mm.checkpoints.loading import UnsafeCheckpoint, checkpoint_error, safe_load
from pelk_mm.engine import checkpoints as old

try:
    ONEDL = bool(version('onedl-mmengine'))
except PackageNotFoundError:
    ONEDL = False


def test_names_of_0_1_0_stay():
    assert compat.load_safely is old.safe_load is safe_load
    assert compat.trust_checkpoint is loading.trust_checkpoint
    assert old.save_whole is atomic_save


@pytest.fixture
def checkpoint(tmp_path):
    """A file with everything that MMEngine's runner saves beside weights."""
    history = HistoryBuffer([1.5, 0.5], [1, 1])
    content = dict(
        state_dict=dict(weight=torch.arange(3.)),
        meta=dict(iter=2, cfg='a = 1', dataset_meta=dict(classes=('a', 'b'))),
        message_hub=dict(
            log_scalars=dict(loss=history),
            runtime_info=dict(best=np.float64(0.25), seed=np.int64(7), ok=np.bool_(True), lr=np.float32(0.5)),
            resumed_keys=dict(loss=True)))
    torch.save(content, tmp_path / 'checkpoint.pth')
    return str(tmp_path / 'checkpoint.pth')


def test_checkpoints_need_the_patch_only_on_upstream(no_safe_globals, checkpoint):
    if ONEDL:
        assert load_from_local(checkpoint, 'cpu')['meta']['iter'] == 2
        patches.allow_checkpoint_contents()
        assert torch.serialization.get_safe_globals() == []
    else:
        with pytest.raises(UnpicklingError, match='HistoryBuffer|_reconstruct|scalar'):
            load_from_local(checkpoint, 'cpu')


class Code:
    """Makes a folder when it is unpickled: stands for any code."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder, )


def test_without_the_patch_only_the_forks_run_code(tmp_path):
    file, folder = tmp_path / 'code.pth', tmp_path / 'ran'
    torch.save(dict(state_dict={}, meta=Code(folder)), file)
    load = f'from mmengine.runner.checkpoint import load_from_local; load_from_local({str(file)!r}, "cpu")'
    subprocess.run([sys.executable, '-c', load], capture_output=True)
    assert folder.exists() == ONEDL
    if ONEDL:
        folder.rmdir()
    with pytest.raises(UnpicklingError, match='mkdir'):
        load_from_local(str(file), 'cpu')
    assert not folder.exists()


def test_the_process_wide_allow_list_is_ignored(tmp_path):
    torch.save(Code(tmp_path / 'ran'), tmp_path / 'code.pth')
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([os.mkdir]), pytest.raises(UnpicklingError):
        safe_load(tmp_path / 'code.pth')
    assert not (tmp_path / 'ran').exists()
    assert set(torch.serialization.get_safe_globals()) == before


def test_log_history_and_numpy_values_are_read_back(checkpoint):
    hub = load_from_local(checkpoint, 'cpu')['message_hub']
    assert hub['log_scalars']['loss'].mean() == 1.0
    assert hub['log_scalars']['loss'].statistics('min') == 0.5
    assert hub['runtime_info'] == dict(best=0.25, seed=7, ok=True, lr=0.5)


def test_the_stand_in_for_getattr_gives_only_statistics():
    assert loading._history_statistic(HistoryBuffer, 'mean') is HistoryBuffer.mean
    for owner, name in ((HistoryBuffer, '__init__'), (dict, 'mean'), (torch, 'load')):
        with pytest.raises(UnpicklingError, match='may only refer to the statistics'):
            loading._history_statistic(owner, name)


def test_upstream_still_destroys_a_file_that_it_fails_to_write(tmp_path):
    path = tmp_path / 'checkpoint.pth'
    for put, left in ((LocalBackend.put, b'before'), (LocalBackend.put.__wrapped__, b'')):
        path.write_bytes(b'before')
        with pytest.raises(TypeError):
            put(LocalBackend(), 'no bytes', path)
        assert path.read_bytes() == left
        assert os.listdir(tmp_path) == ['checkpoint.pth']


def test_a_pipe_is_written_to_not_replaced(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    LocalBackend().put(b'content', tmp_path / 'pipe')
    assert os.read(reader, 100) == b'content'
    os.close(reader)
    assert (tmp_path / 'pipe').is_fifo()


def of_other_numpy(file):
    """Rename the modules of a legacy file to those of the other NumPy, 1 or 2."""
    content = file.read_bytes()
    here, there = (b'numpy._core', b'numpy.core') if b'numpy._core' in content else (b'numpy.core', b'numpy._core')
    # Of pickle's protocol 2: a global is two lines.
    file.write_bytes(content.replace(b'c' + here, b'c' + there))


def name_of(allowed) -> str:
    return allowed[1] if isinstance(allowed, tuple) else allowed.__name__


@pytest.mark.parametrize('allowed', loading.checkpoint_globals(), ids=name_of)
def test_every_allowed_global_is_needed(tmp_path, monkeypatch, allowed):
    """A checkpoint that loads does not without it."""
    history = HistoryBuffer([1.5, 0.5], [1, 1])
    numbers = [np.dtype(name).type(1) for name in loading.NUMPY_TYPES]
    contents = [dict(args=Namespace(lr=0.1)), dict(history=history), dict(numbers=numbers, arrays=np.ones(2))]
    files = []
    for content in contents:
        for other in (False, True):
            files.append(tmp_path / f'{len(files)}.pth')
            torch.save(content, files[-1], _use_new_zipfile_serialization=False)
            if other:
                of_other_numpy(files[-1])
    for file in files:
        safe_load(file)
    rest = [each for each in loading.checkpoint_globals() if each is not allowed and each != allowed]
    monkeypatch.setattr(loading, 'checkpoint_globals', lambda: rest)
    refused = 0
    for file in files:
        try:
            safe_load(file)
        except UnsafeCheckpoint:
            refused += 1
    assert refused


def test_downloads_are_still_loaded_unsafely_by_upstream():
    assert signature(torch.hub.load_state_dict_from_url).parameters['weights_only'].default is False
    assert mmengine.runner.checkpoint.load_url is patches._load_url


def test_configs_are_taken_out_of_what_mmengine_loads(tmp_path):
    """Runner.resume runs them, see test_hostile_files."""
    torch.save(dict(state_dict={}, meta=dict(iter=3, config='raise SystemExit')), tmp_path / 'a.pth')
    patched = CheckpointLoader.load_checkpoint.__func__
    for load, kept in ((patched, ['iter']), (patched.__wrapped__, ['iter', 'config'])):
        assert list(load(CheckpointLoader, str(tmp_path / 'a.pth'), 'cpu')['meta']) == kept


def test_damage_is_described(tmp_path, save):
    path = save('a.pth', 1)
    assert checkpoint_error(path) is None
    save.flip(path)
    assert checkpoint_error(path, checksums=False) is None
    assert checkpoint_error(path) == 'a/data/0 in it has a wrong checksum'
    # PyTorch would not have noticed.
    assert not torch.equal(torch.load(path)['state_dict']['weight'], torch.arange(1000.))
    save.halve(path)
    assert checkpoint_error(path, checksums=False).startswith('its end is missing')
    for content, message in (('', 'it is empty'),
                             ('version https://git-lfs.github.com/spec/v1', 'or it is no file of torch.save')):
        (tmp_path / 'b.pth').write_text(content)
        assert message in checkpoint_error(tmp_path / 'b.pth')


def test_every_cut_is_found(tmp_path, save):
    content = Path(save('a.pth', 1)).read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / 'b.pth').write_bytes(content[:length])
        assert checkpoint_error(tmp_path / 'b.pth', checksums=False), length


def test_a_wrong_bit_anywhere_is_found_or_does_no_harm(tmp_path, save):
    path = tmp_path / 'a.pth'
    content = Path(save('a.pth', 1)).read_bytes()
    sound = torch.load(path)
    found = 0
    for place in range(len(content)):
        wrong = bytearray(content)
        wrong[place] ^= 1 << place % 8
        path.write_bytes(wrong)
        if checkpoint_error(path):
            found += 1
            continue
        # Times, attributes and the like, which PyTorch does not read, or refuses; before 2.7 as no UTF-8.
        with suppress(RuntimeError, UnicodeDecodeError):
            loaded = torch.load(path)
            assert loaded.keys() == sound.keys()
            assert loaded['meta'] == sound['meta']
            assert torch.equal(loaded['state_dict']['weight'], sound['state_dict']['weight'])
    assert found > 0.8 * len(content)
