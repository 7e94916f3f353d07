"""PeLK-MM: large-kernel vision backbones for OpenMMLab.

Importing the package is cheap and has no side effects; import ``pelk_mm.ops``, ``pelk_mm.layers`` or ``pelk_mm.nets``
for plain PyTorch, ``pelk_mm.models`` and ``pelk_mm.engine`` for the registered OpenMMLab modules.
"""

from .version import __version__

__all__ = ['__version__']
