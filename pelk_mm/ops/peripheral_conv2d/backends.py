"""The ordered table of backends and the choice among them.

A backend is a triple of functions on plain tensors, none of them differentiable by itself (the interface adds
autograd): ``why_not`` says why it cannot run, or None; ``forward`` and ``theta_grad`` have the reference's signatures.
A new one is a file and a line of ``BACKENDS``. On the CPU the automatic choice takes it once it has rows in
``costs.CPU_COSTS``, on a GPU where it is measured to be the fastest (``measured_choice.py``), elsewhere by its place in
the table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..sharing_grid import SharingGrid
from . import box_sums, measured_choice, native, reference, triton_backend
from .costs import cheapest
from .cuda import backend as cuda

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One way to compute the peripheral convolution.

    Attributes:
        name (str): Name that users pass as ``backend=``.
        why_not (Callable): ``(x, grid) -> str | None``, the reason why it cannot run on these.
        forward (Callable): ``(x, theta, bias, grid) -> y``; with ``mirrors`` also a fifth argument.
        theta_grad (Callable): ``(x, grad_output, grid) -> grad_theta``.
        mirrors (bool): Whether ``forward`` takes a bool after the grid, and reads theta flipped in both axes if True,
            as the gradient of x needs it.
        follows_tf32 (bool): Whether fp32 has the error of TF32 where PyTorch allows that for convolutions.
        by_name_only (bool): Whether the automatic choice leaves it out.
    """

    name: str
    why_not: Callable[[Tensor, SharingGrid], str | None]
    forward: Callable[..., Tensor]
    theta_grad: Callable[[Tensor, Tensor, SharingGrid], Tensor]
    mirrors: bool = False
    follows_tf32: bool = False
    by_name_only: bool = False

    def convolve(self, x: Tensor, theta: Tensor, bias: Tensor | None, grid: SharingGrid, mirrored: bool) -> Tensor:
        """Call ``forward``, with theta flipped in both axes if ``mirrored``."""
        if self.mirrors:
            return self.forward(x, theta, bias, grid, mirrored)
        return self.forward(x, theta.flip(-2, -1) if mirrored else theta, bias, grid)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend('native', native.why_not, native.forward, native.theta_grad),
        Backend('triton', triton_backend.why_not, triton_backend.forward, triton_backend.theta_grad, mirrors=True),
        Backend('box_sums', box_sums.why_not, box_sums.forward, box_sums.theta_grad),
        # Its kernels have not run on a GPU yet, and an invalid access there would end the user's process.
        Backend('cuda', cuda.why_not, cuda.forward, cuda.theta_grad, follows_tf32=True, by_name_only=True),
        Backend('reference', reference.why_not, reference.forward, reference.theta_grad),
    )
}


# Names of earlier versions.
ALIASES = {'boxes': 'box_sums'}


def resolve_name(name: str) -> str:
    """Return ``'auto'`` or the name of ``BACKENDS`` that ``name`` stands for.

    Raises:
        ValueError: If there is no such backend.
    """
    resolved = ALIASES.get(name, name)
    if resolved != 'auto' and resolved not in BACKENDS:
        raise ValueError(f'backend must be "auto" or one of {sorted(BACKENDS)}, got {name!r}')
    return resolved


def select_backend(name: str, function: str, x: Tensor, grid: SharingGrid) -> Backend:
    """Return the backend called ``name``, or with ``'auto'`` the one that is expected to be fastest for this call.

    On the CPU a measured cost model decides (``costs.py``), on GPUs the first call of a regime, which is timed
    (``measured_choice.py``), elsewhere the order of the table.

    Args:
        name (str): See :func:`resolve_name`.
        function (str): ``'forward'`` or ``'theta_grad'``; the gradient of x is a forward.
        x (Tensor): (N, C, H, W).
        grid (SharingGrid): The cells.

    Raises:
        ValueError: If there is no such backend.
        RuntimeError: If the named backend cannot run on these tensors; the message says why.
    """
    name = resolve_name(name)
    if name != 'auto':
        reason = BACKENDS[name].why_not(x, grid)
        if reason is None and x.device.type == 'cuda' and x.numel():
            reason = measured_choice.on(x.device).why_wrong(BACKENDS[name], function, x, grid)
        if reason is not None:
            raise RuntimeError(f'backend {name!r} of peripheral_conv2d cannot run here: {reason}')
        return BACKENDS[name]
    able = []
    for backend in BACKENDS.values():
        reason = 'only by name' if backend.by_name_only else backend.why_not(x, grid)
        if reason is None:
            able.append(backend)
        else:
            logger.debug('peripheral_conv2d: backend %r is not used: %s', backend.name, reason)
    if x.device.type == 'cpu' and x.numel():
        return BACKENDS[cheapest(tuple(backend.name for backend in able), function, x, grid)]
    if x.device.type == 'cuda' and x.numel():
        return measured_choice.on(x.device).pick(able, function, x, grid)
    return able[0]
