"""The ``pip install`` line for a missing package. PeLK-MM itself requires only PyTorch and NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

# One of the tested stacks of OpenMMLab; the extra "openmmlab" is the other one.
_STACK = 'pip install "pelk-mm[onedl]"'
_EXPORT = 'pip install "pelk-mm[deploy]"'
_OPENVINO = 'pip install "pelk-mm[openvino]"'

# By the name that is imported. For all other names the package has the same name.
INSTALL_LINES: Mapping[str, str] = MappingProxyType(
    dict(
        mmengine=_STACK,
        mmcv=_STACK,
        mmpretrain=_STACK,
        mmseg=_STACK,
        mmdet=_STACK,
        onnx=_EXPORT,
        onnxruntime=_EXPORT,
        onnxscript=_EXPORT,
        openvino=_OPENVINO,
        nncf=_OPENVINO,
        timm='pip install "pelk-mm[timm]"',
        sklearn='pip install "pelk-mm[digits]"',
        hypothesis='pip install "pelk-mm[tests]"',
        cv2='pip install opencv-python-headless',
        PIL='pip install pillow',
        yaml='pip install pyyaml'))


def install_line(module: str) -> str:
    """Return the line that installs a module.

    Args:
        module (str): Its name in imports, e.g. ``'cv2'`` or ``'mmengine.runner'``.
    """
    package = module.partition('.')[0]
    return INSTALL_LINES.get(package, f'pip install {package}')


def require(*modules: str, by: str, instead: str = '') -> None:
    """Check that modules are installed, without importing them.

    Args:
        *modules (str): Their names in imports.
        by (str): The module that needs them, for the message.
        instead (str): A way to work without them, for the message. Defaults to none.

    Raises:
        ModuleNotFoundError: If one is missing; the message has the line that installs it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(
                f'{by} needs {module}, which is not installed: {install_line(module)}'
                + (f'. Without it, {instead}' if instead else ''),
                name=module)
