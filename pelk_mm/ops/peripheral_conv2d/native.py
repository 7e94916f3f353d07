"""The fused CPU backend: ``csrc/native.cpp``, called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .native_build import BuildError, load_library

_NAMES = {
    torch.float32: 'float32',
    torch.float64: 'float64',
    torch.bfloat16: 'bfloat16',
    torch.float16: 'float16',
}


def why_not(x: Tensor, grid: SharingGrid) -> str | None:
    """Return why the library cannot run on x (N, C, H, W), or None if it can."""
    if x.device.type != 'cpu':
        return f'it runs on the CPU, x is on {x.device}'
    library = load_library(x.dtype == torch.float64)
    return str(library) if isinstance(library, BuildError) else None


def forward(x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W), dtype and strides of ``x``. Raises MemoryError without room for scratch memory."""
    out = torch.empty_like(x)
    if out.numel():
        theta, bias = _compute(theta), None if bias is None else _compute(bias)
        _call('forward', x, x.data_ptr(), _longs(x.stride()), theta.data_ptr(),
              bias.data_ptr() if bias is not None else None, out.data_ptr(), _longs(out.stride()), grid)
    return out


def theta_grad(x: Tensor, grad_output: Tensor, grid: SharingGrid) -> Tensor:
    """Return the gradient (C, k', k') of the stored kernel, dtype of ``x``. Raises MemoryError as :func:`forward`."""
    cells = grid.num_cells
    out = torch.zeros(x.shape[1], cells, cells, dtype=torch.float64)
    if x.numel():
        _call('theta_grad', x, x.data_ptr(), _longs(x.stride()), grad_output.data_ptr(), _longs(grad_output.stride()),
              out.data_ptr(), grid)
    return out.to(x.dtype)


def _compute(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype that the library computes in, contiguous."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()


def _call(function: str, x: Tensor, *args) -> None:
    *pointers, grid = args
    library = load_library(x.dtype == torch.float64)
    values = [value if isinstance(value, ctypes.Array) else ctypes.c_void_p(value) for value in pointers]
    run = getattr(library, f'pelk_{function}_{_NAMES[x.dtype]}')
    failed = run(*values, _longs(x.shape), ctypes.c_int64(grid.num_cells), _longs(grid.widths),
                 ctypes.c_int(torch.get_num_threads()))
    if failed:
        raise MemoryError('the native backend of peripheral_conv2d found no memory for its scratch buffers, x has '
                          f'shape {tuple(x.shape)}')


def _longs(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)
