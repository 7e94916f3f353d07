"""What differs between the OpenMMLab stacks and PyTorch versions that PeLK-MM runs on.

Two stacks are known: the maintained forks (``onedl-mmengine`` and the rest) and upstream's last releases
(``mmengine`` and the rest). Importing this module changes nothing. Our tools call :func:`setup` before they parse a
config; so does whoever parses one that inherits from ``pelk_mm::`` with tools of their own::

    from mmengine.config import Config
    from pelk_mm.compat import setup

    setup()
    cfg = Config.fromfile('my_config.py')
"""

from __future__ import annotations

from .install_hints import require

require('mmengine', by='pelk_mm.compat')

import getpass
import logging
import os
import re
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import mmengine.config.config
import mmengine.runner.activation_checkpointing
import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import LocalBackend
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner.checkpoint import CheckpointLoader

from .whole_files import write_whole

# Types of the numbers that checkpoints may hold.
NUMPY_TYPES = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'float16', 'float32',
               'float64')

# Checkpoints, files or URLs, that may run code: see trust_checkpoint().
_trusted: set[str] = set()


class UnsafeCheckpoint(UnpicklingError, ValueError):
    """A checkpoint that holds code; nothing of it was run.

    Args:
        name (str): File or URL.
        needs (str): What loading it would do, e.g. 'call posix.system'.
    """

    def __init__(self, name: str, needs: str) -> None:
        super().__init__(f'{name!r} holds more than tensors and plain values and is not loaded: that would {needs}, '
                         'and could do anything. Nothing of it was run. Let its author save its state_dict alone. Only '
                         'if you know who made the file and trust them, run its code by --trust-checkpoint and its '
                         'name, in a script of your own by pelk_mm.compat.trust_checkpoint')
        self.name, self.needs = name, needs

    def __reduce__(self) -> tuple:
        return UnsafeCheckpoint, (self.name, self.needs)


class DamagedCheckpoint(ValueError):
    """A file that is no checkpoint, or a part of one."""


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
    write_files_whole()
    checkpoint_without_reentry()
    name_compiler_cache()


def register_config_packages() -> None:
    """Make ``_base_ = 'mmseg::...'`` and ``_base_ = 'pelk_mm::...'`` resolve.

    MMEngine looks the prefix up in a table of distributions, and falls back to importing the name when no distribution
    is called so. ``mmseg``: onedl-mmengine 0.10.12 expects it in ``mmsegmentation``, while its fork is distributed as
    ``onedl-mmsegmentation``. ``pelk_mm``: no MMEngine knows it, and mmengine 0.10.7 looks for the package of an
    editable install in site-packages, where it is not; hence the name of a module beside ``.mim``, which is no
    distribution's.
    """
    MODULE2PACKAGE.update(mmseg='mmseg', pelk_mm='pelk_mm.version')


def keep_scope_of_inherited_configs() -> None:
    """Leave what is inherited from ``pelk_mm::...`` in the scope of the config: mmpretrain, mmseg or mmdet.

    For every MMEngine: it marks inherited parts with the prefix, as if that were the toolbox they come from, and would
    look for ``BaseSegDataset`` in ``pelk_mm``.
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
    """Take ``_base_ = 'mmseg::_base_/...'`` from the folder of the toolbox's configs, where it is found in the end.

    For every MMEngine: it first reads all metafiles of the toolbox, more than a second for each inherited file,
    although they list no file of ``_base_``.
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


def allow_checkpoint_contents() -> None:
    """Let ``torch.load(weights_only=True)``, the default since PyTorch 2.6, read what MMEngine's checkpoints hold.

    For mmengine 0.10.7, which cannot resume with PyTorch >= 2.6: its log history holds ``HistoryBuffer`` objects and
    NumPy values. onedl-mmengine 0.10.12 allows them itself.
    """
    needed = not hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals')
    if needed:
        torch.serialization.add_safe_globals(checkpoint_globals())


def never_load_unsafely() -> None:
    """Make MMEngine load every checkpoint by :func:`load_safely`, in training and testing too.

    For onedl-mmengine 0.10.12: a checkpoint that does not load safely it loads again with ``weights_only=False``, and
    so runs what is in it. For every MMEngine: what it downloads it loads with ``weights_only=False``. mmengine 0.10.7
    leaves local files to PyTorch, which refuses since 2.6, but then advises to load the file unsafely.
    """
    module = mmengine.runner.checkpoint
    if hasattr(module, '_safe_torch_load'):
        module._safe_torch_load = _load_as_mmengine_does
    module.load_url = _load_url
    CheckpointLoader.register_scheme('', loader=load_from_local, force=True)


def never_run_saved_configs() -> None:
    """Take ``meta['config']`` out of the checkpoints that MMEngine loads.

    For every MMEngine: resuming runs that text as Python code, to compare numbers of GPUs. MMCV 1 saved it; MMEngine
    saves ``meta['cfg']``, which it leaves alone.
    """
    upstream = CheckpointLoader.load_checkpoint.__func__
    if hasattr(upstream, '__wrapped__'):
        return

    @wraps(upstream)
    def load_checkpoint(cls, *args, **kwargs):
        checkpoint = upstream(cls, *args, **kwargs)
        meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
        if isinstance(meta, dict):
            meta.pop('config', None)
        return checkpoint

    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)


def trust_checkpoint(name: str | Path) -> None:
    """Let this process run the code that a checkpoint may hold. A warning names the file whenever that happens.

    Args:
        name (str | Path): The file, or its URL, just as it is loaded.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if '://' not in str(name) and not os.path.isfile(name):
        raise FileNotFoundError(f'--trust-checkpoint: no such file, {name}')
    _trusted.add(_identity(str(name)))


def load_safely(file, map_location=None, name: str | None = None):
    """``torch.load`` of tensors, plain values and MMEngine's log history, and of nothing else.

    Whatever else the process has allowed does not count, but for files named to :func:`trust_checkpoint`.

    Args:
        file (str | Path | BinaryIO): As ``torch.load`` takes it.
        map_location (str | torch.device, optional): Where tensors are loaded to.
        name (str, optional): What to call it in messages, e.g. the URL that it is from.

    Raises:
        OSError: If it cannot be read.
        DamagedCheckpoint: If it is no checkpoint, or a part of one.
        UnsafeCheckpoint: If it holds anything else, which is not run.
    """
    if name is None:
        name = str(file) if isinstance(file, (str, Path)) else 'a checkpoint'
    return _load_checked(name, partial(torch.load, file, map_location=map_location))


def load_from_local(filename: str, map_location=None):
    """Load a local file for MMEngine, by :func:`load_safely`. MMEngine logs the name of this function."""
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    return load_safely(filename, map_location)


def _load_as_mmengine_does(file, map_location=None, weights_only=None):
    return load_safely(file, map_location)


def _load_url(url, model_dir=None, map_location=None, progress=True):
    return _load_checked(url, partial(torch.hub.load_state_dict_from_url, url, model_dir, map_location, progress))


def _load_checked(name: str, load: Callable[..., Any]) -> Any:
    """Call ``load(weights_only=True)``; of a trusted file that holds code, ``load(weights_only=False)``."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(checkpoint_globals())
    try:
        return load(weights_only=True)
    except OSError:
        raise
    # A file that is damaged, or made to do harm, raises nearly anything.
    except Exception as error:
        needs = _needs(str(error))
        if needs is None:
            reason = str(error).rpartition('WeightsUnpickler error: ')[2].strip() or type(error).__name__
            raise DamagedCheckpoint(f'{name!r} is no checkpoint, or a part of one: {reason.splitlines()[0]}. Copy or '
                                    'download it again, or take the one before') from error
        if _identity(name) not in _trusted:
            raise UnsafeCheckpoint(name, needs) from None
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    print_log(
        f'--trust-checkpoint: {name!r} is loaded with all that it holds, and would {needs}. WHATEVER CODE IS IN IT '
        'RUNS NOW, with your rights.',
        logger='current',
        level=logging.WARNING)
    return load(weights_only=False)


def _needs(message: str) -> str | None:
    """What a file would do that ``weights_only`` refuses, from PyTorch's message; None if that is not the trouble."""
    found = re.search(r'GLOBAL (\S+)(?: was not an allowed| whose module)', message)
    if found:
        return f'call {found.group(1)}'
    found = re.search(r'Can only (?:build|create) .* got (.+)', message)
    if found:
        return f'make a {found.group(1)}'
    refused = r'weights_only=True\W+with (TorchScript archives|files saved in the\s+legacy .tar format)'
    found = re.search(refused, message)
    return f'open {" ".join(found.group(1).split())}' if found else None


def _identity(name: str) -> str:
    return name if '://' in name else os.path.realpath(name)


def checkpoint_globals() -> list:
    """What checkpoints hold beside tensors and plain values, as ``torch.serialization`` takes it.

    MMEngine's log history; NumPy's arrays and numbers; and the arguments of the command line, as other code bases save
    them.
    """
    scalar, reconstruct = (value.__reduce__()[0] for value in (np.float64(0), np.zeros(0)))
    allowed: list = [Namespace, HistoryBuffer, np.ndarray, np.dtype, (_history_statistic, 'builtins.getattr')]
    # NumPy 2 renamed numpy.core; checkpoints written with either must load.
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed += [(scalar, f'{core}.scalar'), (reconstruct, f'{core}._reconstruct')]
    allowed += [type(np.dtype(name)) for name in NUMPY_TYPES]
    return allowed


def _history_statistic(owner: type, name: str):
    """Stands in for ``getattr`` in a checkpoint, where it names the statistics of a ``HistoryBuffer``, and for no more.

    Raises:
        UnpicklingError: If anything else is asked for.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError(
            f'GLOBAL getattr was not an allowed global: it may only refer to the statistics of HistoryBuffer, got '
            f'{name!r} of {owner!r}')
    return getattr(owner, name)


def write_files_whole() -> None:
    """Let a checkpoint, and what else MMEngine writes through its local file backend, appear whole or not at all.

    For every MMEngine: it writes under the final name, so that a process that is killed meanwhile, or a disk that is
    full, leaves a part of a file, and nothing of the file that had the name before.
    """
    upstream = LocalBackend.put
    if hasattr(upstream, '__wrapped__'):
        return

    @wraps(upstream)
    def put(self, obj, filepath):
        if os.path.exists(filepath) and not os.path.isfile(filepath):
            # A device or a pipe is written to, not replaced.
            return upstream(self, obj, filepath)
        return write_whole(obj, str(filepath))

    LocalBackend.put = put


def checkpoint_without_reentry() -> None:
    """Let MMEngine's ``activation_checkpointing`` use the kind of checkpointing that PyTorch recommends.

    For every MMEngine: it does not say which, and PyTorch then warns and takes the reentrant one, which passes no
    gradients on where the input, as an image, requires none: a backbone checkpointed so is not trained.
    """
    module = mmengine.runner.activation_checkpointing
    if not isinstance(module.checkpoint, partial):
        module.checkpoint = partial(module.checkpoint, use_reentrant=False)


def name_compiler_cache() -> None:
    """Let a user without a name train: one whose uid is not in the list of users, as in many containers.

    For PyTorch before 2.12 or so: it names its compiler's cache after the user, which fails, and imports the compiler
    in optimisers and checkpointing.
    """
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):
        folder = Path(tempfile.gettempdir(), f'torchinductor_uid_{os.getuid()}')
        os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(folder))
