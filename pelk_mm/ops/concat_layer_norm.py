"""LayerNorm over the channels of two images side by side, which on GPUs need not be concatenated for it.

The kernel is for inference in eager mode. ``torch.compile`` fuses both steps by itself, and where derivatives are
asked for the concatenation is made, as the backward pass reads it.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .peripheral_conv2d.agreement import MAX_ERRORS, why_wrong

_LIBRARY = torch.library.Library('pelk_mm', 'FRAGMENT')
_LIBRARY.define('concat_layer_norm(Tensor a, Tensor b, Tensor? weight, Tensor? bias, float eps) -> Tensor')

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Elements of a program's two tiles, which are held in registers.
_TILE, _WARPS = 8192, 8


def concat_layer_norm(a: Tensor, b: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return ``layer_norm`` over the channels of ``cat((a, b), 1)``.

    Args:
        a (Tensor): (N, A, H, W), any memory format.
        b (Tensor): (N, B, H, W), B may be 0; any memory format, dtype and device of ``a``.
        weight (Tensor, optional): (A + B,).
        bias (Tensor, optional): (A + B,).
        eps (float): Added to the variance.

    Returns:
        Tensor: (N, A + B, H, W), channels-last.
    """
    run = torch.ops.pelk_mm.concat_layer_norm if _why_not(a, b, weight, bias) is None else _reference
    return run(a, b, weight, bias, eps)


def concat_channels(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate (N, A, H, W) and (N, B, H, W) to (N, A + B, H, W) in the memory format of ``b``; B may be 0."""
    if not b.shape[1]:
        return a
    # Of two formats torch.cat makes planes.
    return torch.cat((a.contiguous(memory_format=torch.channels_last) if b.stride(1) == 1 else a, b), dim=1)


def _reference(a: Tensor, b: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    x = concat_channels(a, b).permute(0, 2, 3, 1)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).permute(0, 3, 1, 2)


def _why_not(a: Tensor, b: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Return why the kernel cannot run, or None if it can."""
    tensors = [tensor for tensor in (a, b, weight, bias) if tensor is not None]
    # Of the first two the graph is better made of PyTorch's own operators.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return 'it is compiled, traced or transformed'
    if forward_ad._current_level >= 0 or torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return 'it has no derivative'
    if a.device.type != 'cuda' or torch.version.hip is not None:
        return f'it needs a CUDA device, the input is on {a.device}'
    if torch.is_autocast_enabled('cuda'):
        return 'autocast decides on the dtypes'
    if a.dtype not in _DTYPES or any(tensor.dtype != a.dtype for tensor in tensors):
        return f'the dtypes must be one of {_DTYPES}, got {[tensor.dtype for tensor in tensors]}'
    if not a.numel() or sum(_block(x.shape[1]) for x in (a, b)) > _TILE:
        return f'the channels must be 1 ... {_TILE}, got {a.shape[1]} and {b.shape[1]}'
    if any(x.stride(2) != x.shape[3] * x.stride(3) or x[:1].numel() >= 2**31 for x in (a, b)):
        return 'the rows have gaps, or an image has 2**31 elements'
    if find_spec('triton') is None or torch.cuda.get_device_capability(a.device) < (8, 0):
        return 'it needs triton and a GPU of compute capability 8.0 or newer'
    if torch.cuda.is_current_stream_capturing() and (a.device, a.dtype) not in _checked:
        return 'the first use must not be in a graph'
    return _why_wrong(a.device, a.dtype)


_checked: set[tuple[torch.device, torch.dtype]] = set()


@cache
def _why_wrong(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernel is not used on a device, after a comparison with PyTorch on a small case."""
    _checked.add((device, dtype))
    numbers = torch.arange(2 * 30 * 15, dtype=torch.float64).mul_(12.9898).sin_().view(2, 30, 3, 5)
    x = numbers.to(device, dtype)
    a, b = x[:, :11].contiguous(), x.contiguous(memory_format=torch.channels_last)[:, 11:]

    def error() -> float:
        found = launch(a, b, x[0, :, 0, 0].contiguous(), x[1, :, 0, 0].contiguous(), 1e-6).double()
        right = _reference(a.double(), b.double(), x[0, :, 0, 0].double(), x[1, :, 0, 0].double(), 1e-6)
        return float((found - right).norm() / right.norm())

    reason = why_wrong(error, MAX_ERRORS[dtype])
    if reason:
        warnings.warn(f'the kernel of concat_layer_norm is switched off for this process, PyTorch replaces it: '
                      f'{reason}. Please report this, with {torch.cuda.get_device_name(device)} and {dtype}',
                      stacklevel=2)
    return reason


def launch(a: Tensor, b: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Run the Triton kernel; arguments as :func:`concat_layer_norm`, in one dtype, pixels of a plane evenly spaced."""
    (batch, _, height, width), channels = a.shape, a.shape[1] + b.shape[1]
    out = torch.empty((batch, channels, height, width), dtype=a.dtype, device=a.device,
                      memory_format=torch.channels_last)
    pixels, *blocks = tile_sizes(a.shape[1], b.shape[1])
    strides = [(x.stride(0), x.stride(1), x.stride(3)) for x in (a, b)]
    tiles = -(-height * width // pixels)
    with torch.cuda.device_of(a):
        _kernel()[(batch * tiles, )](
            a, b, out if weight is None else weight.contiguous(), out if bias is None else bias.contiguous(), out,
            height * width, tiles, a.shape[1], b.shape[1], *strides[0], *strides[1], eps, WEIGHT=weight is not None,
            BIAS=bias is not None, BP=pixels, BA=blocks[0], BB=blocks[1], num_warps=_WARPS)  # yapf: disable
    return out


def tile_sizes(a: int, b: int) -> tuple[int, int, int]:
    """Return the pixels of a program and its channels of each part, powers of two, for parts of so many channels."""
    blocks = _block(a), _block(b)
    # 32 pixels take over 128 registers with Triton 3.4.
    return min(16, 1 << (_TILE // sum(blocks)).bit_length() - 1), *blocks


@cache
def _kernel():
    from .concat_layer_norm_triton import concat_layer_norm_kernel
    return concat_layer_norm_kernel


def _block(channels: int) -> int:
    """Return the power of two that holds so many channels."""
    return 1 << max(channels - 1, 0).bit_length()


def _fake(a, b, weight, bias, eps):
    shape = a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:]
    return torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=torch.channels_last)


_LIBRARY.impl('concat_layer_norm', launch, 'CompositeExplicitAutograd')
torch.library.register_fake('pelk_mm::concat_layer_norm', _fake, lib=_LIBRARY)
