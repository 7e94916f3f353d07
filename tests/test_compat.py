"""Each patch works, is still needed where its docstring says so, and is not applied twice.

A test that fails because upstream has mended its fault means: remove the patch.
"""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pickle import UnpicklingError

import mmengine.config.config
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import HistoryBuffer
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
def no_safe_globals():
    """Run with PyTorch's own allow-list, and put back what was there."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


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
