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
from pathlib import Path

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
from .mmengine_patches import checkpoint_without_reentry, find_base_configs_at_once, keep_scope_of_inherited_configs


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
