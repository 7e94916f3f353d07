"""The operators ``torch.ops.pelk_mm.*``: kernels, shapes, derivatives and batching for PyTorch's dispatcher.

Both are bilinear, so their derivatives are made of the same operators: in forward and in reverse mode, any number of
times, also inside the transforms of ``torch.func``. ``torch.library.custom_op`` would be shorter, but its derivatives
support only reverse mode, do not run inside the transforms, and its first call imports the compiler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ..sharing_grid import SharingGrid
from .backends import select_backend

# Kept for the life of the module: without it the operators would be removed.
_LIBRARY = torch.library.Library('pelk_mm', 'FRAGMENT')
_CONV, _THETA_GRAD = 'peripheral_conv2d', 'peripheral_conv2d_theta_grad'
_LIBRARY.define(f'{_CONV}(Tensor x, Tensor theta, Tensor? bias, SymInt[] half, str backend, bool mirrored=False) '
                '-> Tensor',
                tags=(torch.Tag.pt2_compliant_tag, ))
_LIBRARY.define(f'{_THETA_GRAD}(Tensor x, Tensor grad_output, SymInt[] half, str backend) -> Tensor',
                tags=(torch.Tag.pt2_compliant_tag, ))

# (x, theta, bias, half, backend, mirrored=False) -> y, with theta flipped in both axes if mirrored, and
# (x, grad_output, half, backend) -> grad_theta.
conv = torch.ops.pelk_mm.peripheral_conv2d.default
theta_grad = torch.ops.pelk_mm.peripheral_conv2d_theta_grad.default


def in_autocast(x: Tensor) -> bool:
    """Return whether autocast applies to the device of ``x``."""
    return x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type)


def own_precision(x: Tensor) -> AbstractContextManager:
    """Turn autocast off: inside a backend it would make the fp32 sums of 16-bit input 16-bit ones."""
    return torch.autocast(x.device.type, enabled=False) if in_autocast(x) else nullcontext()


def _without_dynamo(kernel: Callable) -> Callable:
    """Keep Dynamo from compiling a kernel. Dynamo is not imported, as this fails for a user without a name."""
    disabled: list[Callable] = []

    @wraps(kernel)
    def call(*args):
        if not disabled and 'torch._dynamo' in sys.modules:
            disabled.append(torch.compiler.disable(kernel))
        return disabled[0](*args) if disabled else kernel(*args)

    return call


@lru_cache(maxsize=1024)
def _grid(half: tuple[int, ...]) -> SharingGrid:
    return SharingGrid(half)


@_without_dynamo
def _conv_kernel(x: Tensor, theta: Tensor, bias: Tensor | None, half: list[int], backend: str,
                 mirrored: bool = False) -> Tensor:
    grid = _grid(tuple(half))
    with own_precision(x):
        out = select_backend(backend, 'forward', x, grid).convolve(x, theta, bias, grid, mirrored)
    # The strides that the fake implementation promises.
    promised = torch.empty_like(x)
    return out if out.stride() == promised.stride() else promised.copy_(out)


@_without_dynamo
def _theta_grad_kernel(x: Tensor, grad_output: Tensor, half: list[int], backend: str) -> Tensor:
    grid = _grid(tuple(half))
    with own_precision(x):
        return select_backend(backend, 'theta_grad', x, grid).theta_grad(x, grad_output, grid).contiguous()


def _conv_fake(x, theta, bias, half, backend, mirrored=False):
    return torch.empty_like(x)


def _theta_grad_fake(x, grad_output, half, backend):
    cells = 2 * len(half) - 1
    return x.new_empty(x.shape[1], cells, cells)


class _Derivative(_SingleLevelFunction):
    """A node of the graph for the innermost transform, as PyTorch's own operators make it in C++."""

    apply: Any
    operator: Any

    @classmethod
    def dispatch(cls, keyset, *args):
        """Call the operator, with a node if anything asks for derivatives."""
        if torch._C._are_functorch_transforms_active():
            # The transforms outside of the innermost one need the modes that a node's forward pass turns off.
            modes = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
            with enable_single_level_autograd_function():
                return cls.apply(partial(cls.run_in, modes, keyset), *args)
        run = partial(cls.run, keyset)
        differentiated = torch.is_grad_enabled() and any(arg.requires_grad for arg in args if isinstance(arg, Tensor))
        return cls.apply(run, *args) if differentiated or forward_ad._current_level >= 0 else run(*args)

    @classmethod
    def run(cls, keyset, *args):
        """Call the operator below autograd."""
        with torch._C._AutoDispatchBelowAutograd():
            return cls.operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    @classmethod
    def run_in(cls, modes, keyset, *args):
        """Call the operator below autograd, with derivatives in reverse and in forward mode or without."""
        with torch.set_grad_enabled(modes[0]), forward_ad._set_fwd_grad_enabled(modes[1]):
            return cls.run(keyset, *args)


def _outer_tangents() -> AbstractContextManager:
    """Turn forward mode on inside transforms: PyTorch turns it off for ``jvp``, and the outer ones need it."""
    active = torch._C._are_functorch_transforms_active()
    return forward_ad._set_fwd_grad_enabled(True) if active else nullcontext()


def _primal(tensor: Tensor) -> Tensor:
    return forward_ad.unpack_dual(tensor, level=0).primal


def _products(ctx, operator: Callable, *factors: tuple) -> list[Tensor]:
    """Apply the operator to each pair of factors; skip pairs with a missing tangent."""
    return [operator(*pair, *ctx.rest) for pair in factors if pair[0] is not None and pair[1] is not None]


class _ConvDerivative(_Derivative):
    operator = conv

    @staticmethod
    def forward(ctx, run, x, theta, bias, half, backend, mirrored):
        ctx.save_for_backward(x, theta)
        ctx.save_for_forward(x, theta)
        ctx.set_materialize_grads(False)
        ctx.rest, ctx.mirrored = (half, backend), mirrored
        return run(x, theta, bias, half, backend, mirrored)

    @staticmethod
    def backward(ctx, grad):
        x, theta = ctx.saved_tensors
        _, needs_x, needs_theta, needs_bias, *_ = ctx.needs_input_grad
        grad_x = grad_theta = grad_bias = None
        if grad is not None and needs_x:
            # The grid is symmetric, so the adjoint is the same operator with theta flipped in both axes.
            grad_x = conv(grad, theta, None, *ctx.rest, not ctx.mirrored)
        if grad is not None and needs_theta:
            # <grad, conv(x, flipped theta)> = <conv(grad, theta), x>.
            grad_theta = theta_grad(grad, x, *ctx.rest) if ctx.mirrored else theta_grad(x, grad, *ctx.rest)
        if grad is not None and needs_bias:
            grad_bias = grad.sum((0, 2, 3))
        return None, grad_x, grad_theta, grad_bias, None, None, None

    @staticmethod
    def jvp(ctx, _, x_tangent, theta_tangent, bias_tangent, *__):
        x, theta = ctx.saved_tensors
        with _outer_tangents():
            run = partial(conv, mirrored=ctx.mirrored)
            parts = _products(ctx, run, (x_tangent, _primal(theta), None), (_primal(x), theta_tangent, None))
            if bias_tangent is not None:
                parts.append(bias_tangent[:, None, None].expand(x.shape))
            return sum(parts[1:], parts[0]) if parts else None


class _ThetaGradDerivative(_Derivative):
    operator = theta_grad

    @staticmethod
    def forward(ctx, run, x, grad_output, half, backend):
        ctx.save_for_backward(x, grad_output)
        ctx.save_for_forward(x, grad_output)
        ctx.set_materialize_grads(False)
        ctx.rest = half, backend
        return run(x, grad_output, half, backend)

    @staticmethod
    def backward(ctx, grad):
        # <grad, theta_grad(x, dy)> = <dy, conv(x, grad)>: bilinear, so both gradients are convolutions with ``grad``.
        x, grad_output = ctx.saved_tensors
        _, needs_x, needs_grad_output, *_ = ctx.needs_input_grad
        grad_x = grad_dy = None
        if grad is not None and needs_x:
            grad_x = conv(grad_output, grad, None, *ctx.rest, True)
        if grad is not None and needs_grad_output:
            grad_dy = conv(x, grad, None, *ctx.rest)
        return None, grad_x, grad_dy, None, None

    @staticmethod
    def jvp(ctx, _, x_tangent, grad_output_tangent, *__):
        x, grad_output = ctx.saved_tensors
        with _outer_tangents():
            parts = _products(ctx, theta_grad, (x_tangent, _primal(grad_output)), (_primal(x), grad_output_tangent))
            return sum(parts[1:], parts[0]) if parts else None


def _conv_vmap(info, in_dims, x, theta, bias, half, backend, mirrored=False):
    x_dim, theta_dim, bias_dim = in_dims[:3]
    if theta_dim is None and bias_dim is None:
        # More images.
        x = x.movedim(x_dim, 0)
        return conv(x.flatten(0, 1), theta, bias, half, backend, mirrored).unflatten(0, x.shape[:2]), 0
    # More channels, each with its kernel.
    x = _batched(x, x_dim, info.batch_size, 1)
    theta = _batched(theta, theta_dim, info.batch_size, 0).flatten(0, 1)
    bias = None if bias is None else _batched(bias, bias_dim, info.batch_size, 0).flatten(0, 1)
    return conv(x.flatten(1, 2), theta, bias, half, backend, mirrored).unflatten(1, x.shape[1:3]), 1


def _theta_grad_vmap(info, in_dims, x, grad_output, half, backend):
    x, grad_output = (_batched(tensor, dim, info.batch_size, 1) for tensor, dim in zip((x, grad_output), in_dims))
    out = theta_grad(x.flatten(1, 2), grad_output.flatten(1, 2), half, backend)
    return out.unflatten(0, x.shape[1:3]), 0


def _batched(tensor: Tensor, dim: int | None, size: int, to: int) -> Tensor:
    """Return the tensor with its batch of ``size`` in dimension ``to``, repeated if it has none."""
    if dim is not None:
        return tensor.movedim(dim, to)
    return tensor.unsqueeze(to).expand(*tensor.shape[:to], size, *tensor.shape[to:])


def _conv_autograd(keyset, x, theta, bias, half, backend, mirrored=False):
    # The dispatcher leaves out what equals its default.
    return _ConvDerivative.dispatch(keyset, x, theta, bias, half, backend, mirrored)


for _name, _kernel, _fake, _autograd, _vmap in (
    (_CONV, _conv_kernel, _conv_fake, _conv_autograd, _conv_vmap),
    (_THETA_GRAD, _theta_grad_kernel, _theta_grad_fake, _ThetaGradDerivative.dispatch, _theta_grad_vmap)):
    _LIBRARY.impl(_name, _kernel, 'CompositeExplicitAutograd')
    _LIBRARY.impl(_name, _autograd, 'Autograd', with_keyset=True)
    torch.library.register_fake(f'pelk_mm::{_name}', _fake, lib=_LIBRARY)
    # Without it (PyTorch 2.4) a batch is a loop.
    if hasattr(torch.library, 'register_vmap'):
        torch.library.register_vmap(f'pelk_mm::{_name}', _vmap, lib=_LIBRARY)
