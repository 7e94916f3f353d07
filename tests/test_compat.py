"""Each patch works, is still needed where its docstring says so, and is not applied twice.

A test that fails because upstream has mended its fault means: remove the patch.
"""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import mmengine.config.config
import pytest
from mmengine.config import Config
from mmengine.hub import get_config

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


def test_only_on_the_forks_mmseg_configs_need_the_patch(tmp_path):
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
