"""Colours and saving of the figures of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ..checkpoints.atomic import atomic_write, refuse_existing

# Readable in print and with every kind of colour vision: blue, orange, green (Okabe and Ito).
COLORS = ('#0072B2', '#E69F00', '#009E73')


def save_figure(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write a figure to a new file.

    Args:
        figure (Figure): What to draw.
        path (Path): File to write; its ending gives the format, for instance ``.png`` or ``.svg``. Its folder is made.
        dpi (int): Pixels per inch. Defaults to 100.

    Raises:
        FileExistsError: If the file exists.
        ValueError: If matplotlib does not know the ending.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def save_json(numbers: Mapping, path: Path) -> None:
    """Write plain numbers to a new file.

    Args:
        numbers (Mapping): What ``json`` can write.
        path (Path): File to write. Its folder is made.

    Raises:
        FileExistsError: If the file exists.
    """
    refuse_existing(path)
    atomic_write((json.dumps(numbers, indent=1) + '\n').encode(), str(path))
