"""Draw the figures of the page on the peripheral convolution into docs/images, over those that are there."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from pelk_mm.analysis.figures import COLORS
from pelk_mm.ops import SharingGrid, expand_kernel, sum_over_cells

IMAGES = Path(__file__).resolve().parent / 'images'
# Of the smooth kernel: sides of 51 taps, ridges at an angle under a bell.
SIZE = 51


def smooth_kernel() -> torch.Tensor:
    """Return a function of position, (1, K, K), that is detailed in the centre and fades outwards."""
    axis = torch.arange(SIZE, dtype=torch.float64) - SIZE // 2
    y, x = axis[:, None], axis[None, :]
    return (torch.exp(-(x**2 + y**2) / 300) * torch.cos((0.8 * x + 0.5 * y) / 4))[None]


def cell_means(kernel: torch.Tensor, grid: SharingGrid) -> torch.Tensor:
    """Return the mean of a kernel over each cell, (1, k', k')."""
    return sum_over_cells(kernel, grid) / sum_over_cells(torch.ones_like(kernel), grid)


def draw_map(axis, values: np.ndarray, title: str, grid: SharingGrid | None = None) -> None:
    """Draw a map of numbers between -1 and 1, with the grid's cells over it."""
    axis.imshow(values, cmap='RdBu_r', vmin=-1, vmax=1, interpolation='nearest')
    if grid is not None:
        for border in np.cumsum((0, *grid.widths)) - 0.5:
            axis.axhline(border, color='0.45', linewidth=0.5)
            axis.axvline(border, color='0.45', linewidth=0.5)
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])


def sharing_grid() -> Figure:
    grid = SharingGrid.from_kernel_size(SIZE)
    theta = cell_means(smooth_kernel(), grid)
    figure = Figure(figsize=(8.5, 4.6), layout='constrained')
    left, right = figure.subplots(1, 2)
    draw_map(left, expand_kernel(theta, grid)[0].numpy(), f'the kernel: {SIZE} x {SIZE} taps', grid)
    draw_map(right, theta[0].numpy(), f'what is stored: {grid.num_cells} x {grid.num_cells} numbers',
             SharingGrid.dense(grid.num_cells))
    left.set_xlabel('cell widths ' + ' '.join(map(str, grid.widths)))
    return figure


def stored_parameters() -> Figure:
    sizes = list(range(7, 152, 2))
    curves = {
        'dense, K x K': [size**2 for size in sizes],
        'stripes, K x 5 + 5 x K + 5 x 5': [10 * size + 25 for size in sizes],
        'peripheral, centre 5 x 5': [SharingGrid.from_kernel_size(size).num_cells**2 for size in sizes],
    }
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axis = figure.subplots()
    for color, (name, values) in zip(COLORS, curves.items()):
        axis.plot(sizes, values, color=color, drawstyle='steps-mid', label=f'{name}: {values[-1]:,} at 151')
    axis.set_yscale('log')
    axis.set_xlabel('side K of the kernel')
    axis.set_ylabel('stored parameters a channel')
    axis.set_xticks([7, 31, 51, 75, 101, 125, 151])
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def expanded_kernels() -> Figure:
    kernel = smooth_kernel()
    figure = Figure(figsize=(11, 3.2), layout='constrained')
    axes = figure.subplots(1, 4)
    draw_map(axes[0], kernel[0].numpy(), f'dense: {SIZE**2} numbers')
    for axis, center in zip(axes[1:], (1, 5, 9)):
        grid = SharingGrid.from_kernel_size(SIZE, center=center)
        draw_map(axis, expand_kernel(cell_means(kernel, grid), grid)[0].numpy(),
                 f'centre {center}: {grid.num_cells**2} numbers', grid)
    return figure


def three_steps() -> Figure:
    """Draw the answer to a single bright pixel, whose column is all that the first two steps touch."""
    grid = SharingGrid.from_kernel_size(SIZE)
    theta = cell_means(smooth_kernel(), grid)[0].numpy()
    # Turned round, as the answer at p comes from the pixel at p + i.
    vertical = np.array([[cell == own for own in range(grid.num_cells)] for cell in reversed(grid.cells)], dtype=float)
    mixed = vertical @ theta
    pixel = np.zeros((SIZE, SIZE))
    pixel[SIZE // 2 - 1:SIZE // 2 + 2, SIZE // 2 - 1:SIZE // 2 + 2] = 1
    figure = Figure(figsize=(12, 4), layout='constrained')
    axes = figure.subplots(1, 4, width_ratios=(SIZE, 20, 20, SIZE))
    draw_map(axes[0], pixel, 'one pixel (drawn larger)')
    draw_map(axes[1], vertical, '1. vertical sums')
    draw_map(axes[2], mixed, '2. mixed by theta')
    draw_map(axes[3], mixed @ vertical.T, '3. horizontal sums')
    for axis, label in zip(axes[1:3], ('13 cells: additions', '13 cells: 13 x 13\nmultiply-adds')):
        axis.set_aspect('auto')
        axis.set_xlabel(label)
    axes[3].set_xlabel('the kernel, turned by half a turn')
    return figure


if __name__ == '__main__':
    for draw in (sharing_grid, stored_parameters, expanded_kernels, three_steps):
        file = IMAGES / f'{draw.__name__}.png'
        draw().savefig(file, dpi=110)
        print(file)
