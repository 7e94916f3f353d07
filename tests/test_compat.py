"""Each patch works, is still needed where its docstring says so, and is not applied twice.

A test that fails because upstream has mended its fault means: remove the patch.
"""

import os
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from inspect import getsource, signature
from pickle import UnpicklingError

import mmengine.config.config
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hub import get_config
from mmengine.logging import HistoryBuffer
from mmengine.runner import FlexibleRunner, Runner
from mmengine.runner.checkpoint import load_from_local

from pelk_mm import compat

try:
    ONEDL = bool(version('onedl-mmengine'))
except PackageNotFoundError:
    ONEDL = False

DIGITS = 'pelk_mm::digits/pelk-atto_upernet_1xb8-1600it_digits-128x128.py'


def parse_in_fresh_python(tmp_path, base: str, before: str = '') -> str:
    """Parse a config that inherits from ``base``: 'parsed', or the name of the error."""
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {base!r}\n')
    code = (f'{before}\n'
            'from mmengine.config import Config\n'
            f'try:\n    Config.fromfile({str(config)!r})\n    print("parsed")\n'
            'except Exception as error:\n    print(type(error).__name__)\n')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return result.stdout.split()[-1]


def test_mmseg_configs_need_the_patch_on_the_forks_alone(tmp_path):
    base = 'mmseg::_base_/default_runtime.py'
    assert parse_in_fresh_python(tmp_path, base) == ('ModuleNotFoundError' if ONEDL else 'parsed')
    assert parse_in_fresh_python(tmp_path, base, 'from pelk_mm.compat import setup; setup(); setup()') == 'parsed'


def test_our_configs_need_the_patch(tmp_path):
    assert parse_in_fresh_python(tmp_path, DIGITS) == 'AssertionError'
    assert parse_in_fresh_python(tmp_path, DIGITS, 'import pelk_mm') == 'AssertionError'


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain', 'mmseg'])
def test_configs_of_every_toolbox_resolve(tmp_path, scope):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{scope}::_base_/default_runtime.py'\n")
    assert Config.fromfile(config).default_scope == scope


def test_an_inherited_config_is_as_it_is_at_home(tmp_path, root):
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {DIGITS!r}\n')
    home = Config.fromfile(root / 'configs' / DIGITS.partition('::')[2])
    assert Config.fromfile(config).to_dict() == home.to_dict()
    assert get_config(DIGITS).to_dict() == home.to_dict()


def test_upstream_still_puts_inherited_parts_into_the_prefix_scope():
    assert Config._get_cfg_path.__wrapped__(DIGITS, '')[1] == 'pelk_mm'
    assert Config._get_cfg_path(DIGITS, '')[1] is None
    assert Config._get_cfg_path('mmseg::_base_/default_runtime.py', '')[1] == 'mmseg'


def test_upstream_still_reads_the_metafiles_for_base_configs(monkeypatch):
    read = []
    monkeypatch.setattr('mmengine.config.utils.load', lambda path: read.append(path) or dict(Import=[]))
    find = mmengine.config.config._get_external_cfg_path
    for function, reads in ((find, 0), (find.__wrapped__, 1)):
        with pytest.raises(ValueError, match='_base_/default_runtime'):
            function('toolbox', '_base_/default_runtime.py')
        assert len(read) == reads
    path, scope = Config._get_cfg_path('mmseg::_base_/default_runtime.py', '')
    assert path.endswith('mmseg/.mim/configs/_base_/default_runtime.py')
    assert len(read) == 1
    with pytest.raises(FileNotFoundError, match='_base_/no_such_file'):
        Config._get_cfg_path('mmseg::_base_/no_such_file.py', '')


def test_setup_twice_wraps_once():
    compat.setup()
    once = Config._get_cfg_path, mmengine.config.config._get_external_cfg_path
    compat.setup()
    assert (Config._get_cfg_path, mmengine.config.config._get_external_cfg_path) == once
    assert not any(hasattr(function.__wrapped__, '__wrapped__') for function in once)


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


def test_checkpoints_need_the_patch_on_upstream_alone(no_safe_globals, checkpoint):
    if ONEDL:
        assert load_from_local(checkpoint, 'cpu')['meta']['iter'] == 2
        compat.allow_checkpoint_contents()
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


def test_code_in_a_checkpoint_is_run_without_the_patch_on_the_forks_alone(tmp_path):
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


def test_what_the_process_allows_is_not_what_a_checkpoint_may_hold(tmp_path):
    torch.save(Code(tmp_path / 'ran'), tmp_path / 'code.pth')
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([os.mkdir]), pytest.raises(UnpicklingError):
        compat.load_safely(tmp_path / 'code.pth')
    assert not (tmp_path / 'ran').exists()
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_a_checkpoint_holds_is_read_back(checkpoint):
    hub = load_from_local(checkpoint, 'cpu')['message_hub']
    assert hub['log_scalars']['loss'].mean() == 1.0
    assert hub['log_scalars']['loss'].statistics('min') == 0.5
    assert hub['runtime_info'] == dict(best=0.25, seed=7, ok=True, lr=0.5)


def test_the_stand_in_for_getattr_gives_statistics_alone():
    assert compat._history_statistic(HistoryBuffer, 'mean') is HistoryBuffer.mean
    for owner, name in ((HistoryBuffer, '__init__'), (dict, 'mean'), (torch, 'load')):
        with pytest.raises(UnpicklingError, match='may only refer to the statistics'):
            compat._history_statistic(owner, name)


def test_upstream_still_destroys_a_file_that_it_fails_to_write(tmp_path):
    path = tmp_path / 'checkpoint.pth'
    for put, left in ((LocalBackend.put, b'whole'), (LocalBackend.put.__wrapped__, b'')):
        path.write_bytes(b'whole')
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


@pytest.mark.parametrize('allowed', compat.checkpoint_globals(), ids=name_of)
def test_all_that_is_allowed_is_needed(tmp_path, monkeypatch, allowed):
    """A checkpoint that loads does not without it."""
    history = HistoryBuffer([1.5, 0.5], [1, 1])
    numbers = [np.dtype(name).type(1) for name in compat.NUMPY_TYPES]
    contents = [dict(args=Namespace(lr=0.1)), dict(history=history), dict(numbers=numbers, arrays=np.ones(2))]
    files = []
    for content in contents:
        for other in (False, True):
            files.append(tmp_path / f'{len(files)}.pth')
            torch.save(content, files[-1], _use_new_zipfile_serialization=False)
            if other:
                of_other_numpy(files[-1])
    for file in files:
        compat.load_safely(file)
    rest = [each for each in compat.checkpoint_globals() if each is not allowed and each != allowed]
    monkeypatch.setattr(compat, 'checkpoint_globals', lambda: rest)
    refused = 0
    for file in files:
        try:
            compat.load_safely(file)
        except compat.UnsafeCheckpoint:
            refused += 1
    assert refused


def test_downloads_are_still_loaded_unsafely_by_upstream():
    assert signature(torch.hub.load_state_dict_from_url).parameters['weights_only'].default is False
    assert mmengine.runner.checkpoint.load_url is compat._load_url


@pytest.mark.parametrize('kind', [Runner, FlexibleRunner])
def test_upstream_still_runs_configs_in_checkpoints(kind):
    assert "fromstring(\n                checkpoint['meta']['config']" in getsource(kind.resume)


@pytest.mark.parametrize('known', [True, False])
def test_a_user_without_a_name_has_a_folder_for_the_compiler(monkeypatch, known):
    for variable in ('LOGNAME', 'USER', 'LNAME', 'USERNAME', 'TORCHINDUCTOR_CACHE_DIR'):
        monkeypatch.delenv(variable, raising=False)
    if known:
        monkeypatch.setenv('USER', 'somebody')
    monkeypatch.setattr('pwd.getpwuid', lambda uid: (_ for _ in ()).throw(KeyError(f'uid not found: {uid}')))
    compat.name_compiler_cache()
    folder = os.environ.get('TORCHINDUCTOR_CACHE_DIR')
    monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR', raising=False)
    assert folder is None if known else folder.endswith(f'torchinductor_uid_{os.getuid()}')
