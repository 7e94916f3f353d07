"""The comparison of a kernel with the reference before its first use, on the device and on a case of that kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from . import reference
from .costs import is_channels_last

if TYPE_CHECKING:
    from .backends import Backend

MAX_ERRORS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest relative error (norm, against fp64) of a kernel that is used, by dtype: several times that of rounding."""
_TF32_ERROR = 2e-3
# Enough programs for the largest tiles, little memory.
_MAX_ELEMENTS, _MAX_SIDE = 2**24, 256


def max_error(backend: Backend, dtype: torch.dtype) -> float:
    """Return the largest relative error of a backend that is used."""
    tf32 = dtype == torch.float32 and backend.follows_tf32 and torch.backends.cudnn.allow_tf32
    return _TF32_ERROR if tf32 else MAX_ERRORS[dtype]


def why_wrong(error: Callable[[], float], bound: float) -> str | None:
    """Return why a kernel must not be used, or None if it agrees with the reference.

    Args:
        error (Callable[[], float]): Runs the kernel, and returns its relative error.
        bound (float): The largest one that is accepted.

    Raises:
        torch.OutOfMemoryError: By ``error``, which says nothing about the kernel.
    """
    try:
        found = error()
    except torch.OutOfMemoryError:
        raise
    # Compilers and drivers raise errors of many classes.
    except Exception as failure:
        return f'it does not run: {type(failure).__name__}: {failure}'
    if found <= bound:
        return None
    return f'its result differs from the reference by {found:.1e}, at most {bound:.0e} is expected'


def difference(backend: Backend, function: str, x: Tensor, grid: SharingGrid) -> float:
    """Return the relative error of a backend against the reference in fp64, on a case of the kind of ``x``.

    It has the dtype, layout, grid and channels of ``x`` and its map up to 256 pixels a side. The backend computes all
    planes, so that it takes the kernel that it would take for ``x``; those of the first and last image and channel are
    compared.
    """
    # Rows keep their alignment.
    height, width = (side if side <= _MAX_SIDE else _MAX_SIDE - -side % 4 for side in x.shape[2:])
    batch = max(1, min(len(x), _MAX_ELEMENTS // (x.shape[1] * height * width)))
    images, channels = sorted({0, batch - 1}), sorted({0, x.shape[1] - 1})

    def ends(tensor: Tensor) -> Tensor:
        return tensor[images][:, channels].double()

    sample = _numbers((batch, x.shape[1], height, width), x)
    if function == 'forward':
        theta = _numbers((x.shape[1], grid.num_cells, grid.num_cells), x) / grid.kernel_size
        bias = _numbers((x.shape[1], ), x)
        parts = [ends(backend.convolve(sample, theta, bias, grid, mirrored)) for mirrored in (False, True)]
        sides = theta[channels].double(), theta[channels].double().flip(-2, -1)
        found = torch.stack(parts)
        expected = torch.stack([reference.forward(ends(sample), side, bias[channels].double(), grid) for side in sides])
    else:
        grad = _numbers(sample.shape, x).roll(1, -1)
        grad[1:batch - 1] = 0
        found = backend.theta_grad(sample, grad, grid)[channels].double()
        expected = reference.theta_grad(ends(sample), ends(grad), grid)
    return float((found - expected).norm() / expected.norm())


def _numbers(shape: Sequence[int], x: Tensor) -> Tensor:
    """Make numbers from -1 to 1 in dtype, device and layout of ``x``; the state of random generators stays."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float32, device=x.device).mul_(12.9898).sin_()
    numbers = numbers.view(*shape).to(x.dtype)
    if len(shape) == 4 and is_channels_last(x):
        return numbers.contiguous(memory_format=torch.channels_last)
    return numbers
