"""The shapes, inputs and dense competitors that benchmarks of the peripheral convolution share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from pelk_mm.ops import SharingGrid, expand_kernel

CHANNELS = (46, 93, 187, 374)
"""Convolved channels of PeLK-T's stages."""
MAPS = {224: (56, 28, 14, 7), 512: (128, 64, 32, 16)}
"""Sides of the stages' maps by the side of the image."""
KERNELS = {5: (51, 49, 47, 13), 7: (101, 69, 67, 13)}
"""Kernel sizes of the stages by the side of the centre."""
SHRUNK = dict(depths=(1, 1, 1, 1), channels=(8, 16, 16, 16))
"""Arguments of a network that tries the code of a benchmark in seconds."""


def draw(shape: tuple[int, ...], grid: SharingGrid, dtype: torch.dtype, device: str | torch.device, requires_grad: bool,
         seed: int = 0) -> tuple[Tensor, ...]:
    """Draw random x (N, C, H, W), theta (C, k', k') and gradient of the output (N, C, H, W).

    Args:
        shape (tuple[int, ...]): (N, C, H, W).
        grid (SharingGrid): The cells.
        dtype (torch.dtype): Of all three.
        device (str | torch.device): Of all three.
        requires_grad (bool): Whether x and theta are to be differentiated.
        seed (int): Of the generator, one of the device's own. Defaults to 0.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    x, grad = normal(*shape).to(dtype), normal(*shape).to(dtype)
    theta = (normal(shape[1], grid.num_cells, grid.num_cells) / grid.kernel_size).to(dtype)
    return x.requires_grad_(requires_grad), theta.requires_grad_(requires_grad), grad


def dense_conv2d(x: Tensor, theta: Tensor, grid: SharingGrid) -> Tensor:
    """Run F.conv2d with the expanded kernel."""
    return F.conv2d(x, expand_kernel(theta, grid).unsqueeze(1), padding=grid.kernel_size // 2, groups=x.shape[1])


def fft_conv2d(x: Tensor, theta: Tensor, grid: SharingGrid) -> Tensor:
    """Convolve by the product of spectra, in fp32 or better; sizes are padded to those that suit FFTs."""
    pad, kernel = grid.kernel_size // 2, expand_kernel(theta, grid).flip(-2, -1)
    size = [_smooth(side + grid.kernel_size - 1) for side in x.shape[-2:]]
    dtype = torch.promote_types(x.dtype, torch.float32)
    product = torch.fft.rfft2(x.to(dtype), s=size) * torch.fft.rfft2(kernel.to(dtype), s=size)
    out = torch.fft.irfft2(product, s=size)
    return out[..., pad:pad + x.shape[-2], pad:pad + x.shape[-1]].to(x.dtype)


def timed(run: Callable[[Tensor, Tensor], Tensor], backward: bool) -> Callable:
    """Return the function of (x, theta, grad) to time: forward, or forward and backward."""
    def both(x: Tensor, theta: Tensor, grad: Tensor) -> None:
        out = run(x, theta)
        wanted = [x, theta] if out.requires_grad and out.grad_fn is not None else [x]
        torch.autograd.grad(out, wanted, grad, allow_unused=True)

    return both if backward else lambda x, theta, grad: run(x, theta)


def _smooth(size: int) -> int:
    """Return the least even number from ``size`` on without a prime factor over 7."""
    def rest(number: int) -> int:
        for factor in (2, 3, 5, 7):
            while number % factor == 0:
                number //= factor
        return number

    return next(number for number in count(size + size % 2, 2) if rest(number) == 1)
