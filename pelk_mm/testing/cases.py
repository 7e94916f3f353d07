"""Shared case lists of the peripheral convolution: every backend is tested on the same ones.

A case names shape, layout, grid and mean of the input; :meth:`Case.make` draws its tensors. ``CASES`` are small enough
for the slowest backend, ``PRECISION_CASES`` are the larger maps and means that the error bounds are stated for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pelk_mm.ops import SharingGrid, peripheral_conv2d

LAYOUTS = ('contiguous', 'channels_last', 'channel_slice', 'channels_last_slice', 'transposed', 'strided', 'expanded')


class Inputs(NamedTuple):
    """Tensors of one case: x and grad_output (N, C, H, W), theta (C, k', k'), bias (C,), all of one dtype."""

    x: Tensor
    theta: Tensor
    bias: Tensor
    grad_output: Tensor


class Results(NamedTuple):
    """Output (N, C, H, W) and the gradients of the inputs they are named after."""

    output: Tensor
    x: Tensor
    theta: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Case:
    """One case of the peripheral convolution.

    Attributes:
        id (str): Name of the case in test reports.
        shape (tuple[int, int, int, int]): (N, C, H, W).
        grid (SharingGrid): The cells.
        layout (str): How x and grad_output lie in memory, one of ``LAYOUTS``.
        mean (float): Mean of x; its standard deviation is 1.
    """

    id: str
    shape: tuple[int, int, int, int]
    grid: SharingGrid
    layout: str = 'contiguous'
    mean: float = 0.0

    def make(self, dtype: torch.dtype = torch.float32, device: str | torch.device = 'cpu', seed: int = 0) -> Inputs:
        """Draw the tensors. They are drawn on the CPU, so that every device sees the same numbers."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator)

        batch, channels, height, width = self.shape
        cells = self.grid.num_cells
        x = (draw(*self.shape) + self.mean).to(device=device, dtype=dtype)
        theta = (draw(channels, cells, cells) / self.grid.kernel_size).to(device=device, dtype=dtype)
        bias = draw(channels).to(device=device, dtype=dtype)
        grad = draw(*self.shape).to(device=device, dtype=dtype)
        return Inputs(lay_out(x, self.layout), theta, bias, lay_out(grad, self.layout))


def lay_out(x: Tensor, layout: str) -> Tensor:
    """Return the values of ``x`` (N, C, H, W) in another memory layout.

    The hidden part of a larger buffer is NaN, so reading past the view is noticed.

    Args:
        x (Tensor): (N, C, H, W), floating point.
        layout (str): One of ``LAYOUTS``. ``'expanded'`` repeats the first image with a batch stride of 0.

    Raises:
        ValueError: If the layout is unknown.
    """
    batch, channels, height, width = x.shape
    if layout == 'contiguous':
        return x.contiguous()
    if layout == 'channels_last':
        return x.contiguous(memory_format=torch.channels_last)
    if layout in ('channel_slice', 'channels_last_slice'):
        whole = x.new_full((batch, channels + 3, height, width), float('nan'))
        if layout == 'channels_last_slice':
            whole = whole.contiguous(memory_format=torch.channels_last)
        return whole[:, 1:channels + 1].copy_(x)
    if layout == 'transposed':
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == 'strided':
        whole = x.new_full((batch, channels, 2 * height, 3 * width), float('nan'))
        return whole[:, :, 1::2, ::3].copy_(x)
    if layout == 'expanded':
        return x[:1].contiguous().expand_as(x)
    raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}')


def run(inputs: Inputs, grid: SharingGrid, backend: str | None = None) -> Results:
    """Return the output and every gradient of :func:`pelk_mm.ops.peripheral_conv2d` on these inputs."""
    x, theta, bias = (tensor.detach().requires_grad_() for tensor in inputs[:3])
    output = peripheral_conv2d(x, theta, grid, bias, backend=backend)
    return Results(output.detach(), *torch.autograd.grad(output, (x, theta, bias), inputs.grad_output))


def expected(inputs: Inputs, grid: SharingGrid) -> Results:
    """Return the expected result of :func:`run`: the reference in fp64, on the same numbers as in ``inputs``."""
    return run(Inputs(*(tensor.double().cpu().contiguous() for tensor in inputs)), grid, 'reference')


_paper, _half = SharingGrid.from_kernel_size, SharingGrid.from_half
GRIDS = {
    'k1': _paper(1, 1),
    'k3': _paper(3, 3),
    'k13': _paper(13),
    'k31': _paper(31),
    'k47': _paper(47),
    'k49': _paper(49),
    'k51': _paper(51),
    'k51-center1': _paper(51, 1),
    'k51-center3': _paper(51, 3),
    'k51-center7': _paper(51, 7),
    'k67-center7': _paper(67, 7),
    'k69-center7': _paper(69, 7),
    'k101-center7': _paper(101, 7),
    'k151-center7': _paper(151, 7),
    'k51-base3': _paper(51, base=3),
    'dense7': SharingGrid.dense(7),
    'twos': _half([2, 2, 2, 2, 2, 2, 2, 2, 1]),
    'twos-fine-center': _half([2, 2, 2, 2, 2, 2, 2, 1, 1, 1]),
    'fours': _half([4, 4, 4, 2, 1, 1, 1]),
    'k33': _half([8, 4, 2, 1, 1, 1]),
    'reversed': _half([1, 1, 2, 4, 8, 1]),
    'one-wide-cell': _half([7]),
    'odd-widths': _half([6, 5, 3, 7]),
}
"""The paper's grids (its tables 5 to 7 and every stage of its models) and hand-made ones."""

CASES = (
    *(Case(f'grid-{name}', (2, 2, 13, 17), grid) for name, grid in GRIDS.items()),
    *(Case(f'layout-{layout}', (2, 3, 11, 13), GRIDS['k13'], layout) for layout in LAYOUTS),
    Case('channels-last-k51', (2, 5, 19, 23), GRIDS['k51'], 'channels_last'),
    Case('channel-slice-k51', (3, 5, 19, 23), GRIDS['k51'], 'channel_slice'),
    Case('prime-sides', (1, 2, 37, 29), GRIDS['k31']),
    Case('wide', (1, 2, 5, 67), GRIDS['k51']),
    Case('tall', (1, 2, 67, 5), GRIDS['k51']),
    Case('one-row', (2, 3, 1, 31), GRIDS['k13']),
    Case('one-column', (2, 3, 31, 1), GRIDS['k13']),
    Case('one-pixel', (3, 2, 1, 1), GRIDS['k51']),
    Case('kernel-over-twice-the-map', (2, 2, 7, 6), GRIDS['k51']),
    Case('kernel-far-over-the-map', (1, 2, 5, 3), GRIDS['k151-center7']),
    Case('one-channel', (2, 1, 14, 14), GRIDS['k47']),
    Case('many-images', (23, 2, 7, 7), GRIDS['k13']),
    Case('many-channels', (1, 37, 7, 5), GRIDS['k3']),
    Case('empty-batch', (0, 3, 7, 7), GRIDS['k13']),
    Case('mean-100', (1, 2, 23, 19), GRIDS['k51'], mean=100.0),
)
"""Small cases: prime sides, H != W, tiny maps, kernels over the map, every layout, every grid."""

_MAPS = {'7x7': (7, 7), '28x28': (28, 28), '56x56': (56, 56), '128x128': (128, 128), '61x101': (61, 101)}

PRECISION_CASES = (
    *(Case(f'{name}-{grid}-mean{mean:g}', (2, 2, *size), GRIDS[grid], mean=mean) for name, size in _MAPS.items()
      for grid in ('k3', 'k51') for mean in (0.0, 1.0, 10.0, 100.0)),
    *(Case(f'56x56-{grid}-mean{mean:g}', (1, 2, 56, 56), GRIDS[grid], mean=mean)
      for grid in ('k101-center7', 'k151-center7') for mean in (0.0, 100.0)),
    *(Case(f'512x512-{grid}-mean{mean:g}', (1, 1, 512, 512), GRIDS[grid], mean=mean)
      for grid in ('k3', 'k51', 'k151-center7') for mean in (0.0, 100.0)),
)
"""Maps and means that the fp32 error bound is stated for."""

POISON_CASES = (
    Case('contiguous', (3, 3, 9, 11), GRIDS['k13']),
    Case('channels-last', (3, 3, 9, 11), GRIDS['k13'], 'channels_last'),
    Case('kernel-over-map', (3, 3, 6, 5), GRIDS['k51']),
)
"""Cases with an image and a channel on every side of the plane that :func:`poison` spoils."""


def poison(inputs: Inputs, value: float, image: int = 1, channel: int = 1) -> tuple[Inputs, Tensor]:
    """Put ``value`` (NaN, inf) into the middle of one plane of x.

    Returns:
        tuple[Inputs, Tensor]: The inputs with the changed x, in the layout it had, and a boolean (N, C) that is True
        for the planes that must be unaffected.
    """
    x = inputs.x.clone(memory_format=torch.preserve_format)
    x[image, channel, x.shape[2] // 2, x.shape[3] // 2] = value
    others = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    others[image, channel] = False
    return inputs._replace(x=x), others
