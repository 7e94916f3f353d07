"""Probes of the parts of an environment, each run in a process of its own, as a bad part may crash it.

Every probe returns plain values; what it raises is part of the diagnosis.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# Everything that the trainings of this repository import.
PACKAGES = ('torch', 'torchvision', 'numpy', 'cv2', 'mmengine', 'mmcv', 'mmcv.ops', 'mmpretrain', 'mmseg', 'mmdet',
            'pelk_mm.models')


def be_quiet() -> None:
    """Discard the output of imports and compilers."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def run(name: str) -> dict[str, Any]:
    """Run a probe: ``'devices'``, ``'backends'``, or the name of a package to import.

    Returns:
        dict[str, Any]: What it found, or ``error``, the exception in words.
    """
    try:
        return _PROBES[name]() if name in _PROBES else dict(
            version=getattr(importlib.import_module(name), '__version__', ''))
    except Exception as error:
        return dict(error=f'{type(error).__name__}: {error}')


def _torchvision() -> dict[str, Any]:
    import torch
    import torchvision
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    return dict(version=torchvision.__version__)


def _ops() -> dict[str, Any]:
    import torch

    from ..mmcv_ops import use
    uses_torchvision = use()
    from mmcv.ops import get_compiling_cuda_version, nms
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]], dtype=torch.float32)
    kept = nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5)[1].tolist()
    if kept != [1, 2]:
        raise AssertionError(f'mmcv.ops.nms kept {kept}, expected [1, 2]')
    return dict(version='by torchvision' if uses_torchvision else 'compiled', cuda=get_compiling_cuda_version())


def _devices() -> dict[str, Any]:
    import torch
    available = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if available else []
    capabilities = [list(torch.cuda.get_device_capability(index)) for index in range(len(names))]
    return dict(
        built_for=torch.version.cuda,
        names=names,
        capabilities=capabilities,
        architectures=torch.cuda.get_arch_list() if available else [],
        driver=os.path.exists('/proc/driver/nvidia/version'),
        threads=torch.get_num_threads(),
        hidden=os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'))


def _backends() -> dict[str, Any]:
    import torch

    from pelk_mm.ops import SharingGrid, available_backends
    grid = SharingGrid.from_kernel_size(13)
    reasons = {}
    for device in ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]:
        x, theta = torch.zeros(1, 2, 8, 8, device=device), torch.zeros(2, grid.num_cells, grid.num_cells, device=device)
        reasons[device] = available_backends(x, theta, grid)
    return dict(reasons=reasons)


_PROBES = {'torchvision': _torchvision, 'mmcv.ops': _ops, 'devices': _devices, 'backends': _backends}
