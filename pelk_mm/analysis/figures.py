"""Colours and curves of figures, and files that are not overwritten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..checkpoints.atomic import atomic_write, refuse_existing

# Readable in print and with every kind of colour vision: blue, orange, green (Okabe and Ito).
COLORS = ('#0072B2', '#E69F00', '#009E73')


def draw_curves(axis: Axes, curves: Mapping[str, Sequence[Sequence[float]]], markersize: int = 3) -> None:
    """Draw curves over the size of the kernel, by label their sizes and values."""
    for color, (label, (sizes, values)) in zip(COLORS, curves.items()):
        axis.plot(sizes, values, color=color, label=label, marker='o', markersize=markersize)
    axis.set_xlabel('kernel size K')
    axis.grid(alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)


def save_figure(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write a figure to a new file, ``.png``, ``.svg`` or any other ending that matplotlib knows. Its folder is made.

    Raises:
        FileExistsError: If the file exists.
        ValueError: If matplotlib does not know the ending.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def save_json(numbers: Mapping, path: Path) -> None:
    """Write plain numbers to a new JSON file. Its folder is made.

    Raises:
        FileExistsError: If the file exists.
    """
    refuse_existing(path)
    atomic_write((json.dumps(numbers, indent=1) + '\n').encode(), str(path))
