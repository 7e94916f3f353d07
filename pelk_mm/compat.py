"""Level the differences between the OpenMMLab stacks and PyTorch versions that PeLK-MM runs on.

Two stacks are known: the maintained forks (``onedl-mmengine`` and the rest) and upstream's last releases
(``mmengine`` and the rest). Importing this module changes nothing. Our tools call :func:`setup` before they parse a
config. Your own tools call it before they parse a config that inherits from ``pelk_mm::``::

    from mmengine.config import Config
    from pelk_mm.compat import setup

    setup()
    cfg = Config.fromfile('my_config.py')
"""

from __future__ import annotations

from .install_hints import require

require('mmengine', by='pelk_mm.compat')

import getpass
import os
import tempfile
from functools import partial, wraps
from pathlib import Path

import mmengine.config.config
import mmengine.runner.activation_checkpointing
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

# Names of 0.1.0, of which scripts use trust_checkpoint.
from .checkpoints.loading import DamagedCheckpoint, UnsafeCheckpoint, trust_checkpoint  # noqa: F401
from .checkpoints.loading import safe_load as load_safely  # noqa: F401
from .checkpoints.patches import (
    allow_checkpoint_contents,
    never_load_unsafely,
    never_run_saved_configs,
    write_files_atomically,
)


def setup() -> None:
    """Apply every patch that the installed versions need. Calling it again changes nothing."""
    # Importing it lets mmcv.ops load where mmcv was installed without its compiled operators.
    from . import mmcv_ops  # noqa: F401
    register_config_packages()
    keep_scope_of_inherited_configs()
    find_base_configs_at_once()
    allow_checkpoint_contents()
    never_load_unsafely()
    never_run_saved_configs()
    write_files_atomically()
    checkpoint_without_reentry()
    name_compiler_cache()


def register_config_packages() -> None:
    """Make ``_base_ = 'mmseg::...'`` and ``_base_ = 'pelk_mm::...'`` resolve.

    MMEngine looks up the prefix in a table of distributions, and imports the name if no distribution has it. ``mmseg``:
    onedl-mmengine 0.10.12 expects it in ``mmsegmentation``, while its fork is distributed as ``onedl-mmsegmentation``.
    ``pelk_mm``: no MMEngine knows it, and mmengine 0.10.7 looks for the package of an editable install in
    site-packages, where it is not. So the table gets the name of a module beside ``.mim``, which is not a distribution.
    """
    MODULE2PACKAGE.update(mmseg='mmseg', pelk_mm='pelk_mm.version')


def keep_scope_of_inherited_configs() -> None:
    """Keep parts inherited from ``pelk_mm::...`` in the scope of the config: mmpretrain, mmseg or mmdet.

    For every MMEngine: it marks inherited parts with the prefix as their toolbox, and would look for
    ``BaseSegDataset`` in ``pelk_mm``.
    """
    upstream = Config._get_cfg_path
    if hasattr(upstream, '__wrapped__'):
        return

    @wraps(upstream)
    def get_cfg_path(cfg_path, filename):
        path, scope = upstream(cfg_path, filename)
        return path, None if scope == 'pelk_mm' else scope

    Config._get_cfg_path = staticmethod(get_cfg_path)


def find_base_configs_at_once() -> None:
    """Take ``_base_ = 'mmseg::_base_/...'`` directly from the folder of the toolbox's configs.

    For every MMEngine: it first reads all metafiles of the toolbox, which takes more than a second for each inherited
    file, although they list no file of ``_base_``.
    """
    upstream = mmengine.config.config._get_external_cfg_path
    if hasattr(upstream, '__wrapped__'):
        return

    @wraps(upstream)
    def get_external_cfg_path(package_path, cfg_file):
        if cfg_file.startswith('_base_/'):
            raise ValueError(f'{cfg_file} is in no metafile')
        return upstream(package_path, cfg_file)

    mmengine.config.config._get_external_cfg_path = get_external_cfg_path


def checkpoint_without_reentry() -> None:
    """Let MMEngine's ``activation_checkpointing`` use the kind of checkpointing that PyTorch recommends.

    For every MMEngine: it does not choose one, and PyTorch then warns and takes the reentrant one. That one passes no
    gradients if the input, such as an image, requires none, so the backbone is not trained.
    """
    module = mmengine.runner.activation_checkpointing
    if not isinstance(module.checkpoint, partial):
        module.checkpoint = partial(module.checkpoint, use_reentrant=False)


def name_compiler_cache() -> None:
    """Let a user without a name train, whose uid is not in the list of users, as in many containers.

    For PyTorch before about 2.12: it names its compiler's cache after the user, which fails, and imports the compiler
    in optimisers and checkpointing.
    """
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):
        folder = Path(tempfile.gettempdir(), f'torchinductor_uid_{os.getuid()}')
        os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(folder))
