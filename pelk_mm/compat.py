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

from argparse import Namespace
from functools import wraps
from pickle import UnpicklingError

import mmengine.config.config
import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer


def setup() -> None:
    """Apply every patch that the installed versions need. Calling it again changes nothing."""
    register_config_packages()
    keep_scope_of_inherited_configs()
    find_base_configs_at_once()
    allow_checkpoint_contents()
    never_load_unsafely()


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
    needed = torch.__version__ >= (2, 6) and not hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals')
    if needed:
        torch.serialization.add_safe_globals(checkpoint_globals())


def never_load_unsafely() -> None:
    """Make MMEngine refuse a checkpoint that holds code, in training and testing too.

    For onedl-mmengine 0.10.12: a checkpoint that does not load safely it loads again with ``weights_only=False``, and
    so runs what is in it. mmengine 0.10.7 leaves the choice to PyTorch, which refuses since 2.6.
    """
    if hasattr(mmengine.runner.checkpoint, '_safe_torch_load'):
        mmengine.runner.checkpoint._safe_torch_load = _load_as_mmengine_does


def _load_as_mmengine_does(file, map_location=None, weights_only=None):
    return load_safely(file, map_location)


def load_safely(file, map_location=None):
    """``torch.load`` of tensors, plain values and MMEngine's log history, and of nothing else.

    Whatever else the process has allowed does not count.

    Args:
        file (str | Path | BinaryIO): As ``torch.load`` takes it.
        map_location (str | torch.device, optional): Where tensors are loaded to.

    Raises:
        UnpicklingError: If the file holds anything else, which is not run.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(checkpoint_globals())
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def checkpoint_globals() -> list:
    """What checkpoints hold beside tensors and plain values, as ``torch.serialization`` takes it.

    MMEngine's log history; and the arguments of the command line, as other code bases save them.
    """
    scalar, reconstruct = (value.__reduce__()[0] for value in (np.float64(0), np.zeros(0)))
    allowed: list = [Namespace, HistoryBuffer, np.ndarray, np.dtype, (_history_statistic, 'builtins.getattr')]
    # NumPy 2 renamed numpy.core; checkpoints written with either must load.
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed += [(scalar, f'{core}.scalar'), (reconstruct, f'{core}._reconstruct')]
    allowed += [type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?']
    return allowed


def _history_statistic(owner: type, name: str):
    """Stands in for ``getattr`` in a checkpoint, where it names the statistics of a ``HistoryBuffer``, and for no more.

    Raises:
        UnpicklingError: If anything else is asked for.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError(
            f'a checkpoint may only refer to the statistics of HistoryBuffer, got {name!r} of {owner!r}')
    return getattr(owner, name)
