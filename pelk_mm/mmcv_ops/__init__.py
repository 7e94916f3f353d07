"""mmcv's operators by torchvision and PyTorch, for an mmcv that was installed without its compiled ones.

Importing this module lets ``mmcv.ops`` load, and with it mmdet's, mmseg's and mmpretrain's models. A config of any
toolbox needs one more name::

    custom_imports = dict(imports=['pelk_mm.mmcv_ops', 'pelk_mm.models'], allow_failed_imports=False)

and a script one import before those of the toolboxes. Our own tools need neither. Compiled operators are used where
they are installed, unless the environment variable ``PELK_MM_MMCV_OPS`` is ``torchvision``.

``python -m pelk_mm.mmcv_ops install`` does the same for every program of an environment; see :mod:`.__main__`.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec

__all__ = ['find_extension', 'use']

# The module in which mmcv looks for its compiled operators.
NAME = 'mmcv._ext'


def use(replace_compiled: bool = False) -> bool:
    """Let ``mmcv.ops`` load without compiled operators, in this process. Calling it again changes nothing.

    Args:
        replace_compiled (bool): Whether to replace compiled operators too. Defaults to False.

    Returns:
        bool: Whether ``mmcv.ops`` uses torchvision and PyTorch.

    Raises:
        RuntimeError: If compiled operators are to be replaced after they were loaded.
    """
    loaded = sys.modules.get(NAME)
    if loaded is None and (replace_compiled or find_extension() is None):
        from . import extension
        sys.modules[NAME] = loaded = extension
    ours = loaded is not None and loaded.__name__.startswith(__name__)
    if replace_compiled and not ours:
        raise RuntimeError(f'{NAME} is loaded already, from {getattr(loaded, "__file__", "?")}: call '
                           f'{__name__}.use(replace_compiled=True) before mmcv.ops is imported')
    return ours


def find_extension() -> ModuleSpec | None:
    """Return where mmcv's operators would be loaded from, compiled or installed by us; None if nowhere."""
    mmcv = find_spec('mmcv')
    return PathFinder.find_spec(NAME, mmcv.submodule_search_locations) if mmcv else None


use(replace_compiled=os.environ.get('PELK_MM_MMCV_OPS') == 'torchvision')
