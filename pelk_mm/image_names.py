"""Find image files by their names."""

from __future__ import annotations

from pathlib import Path

# What Pillow and OpenCV read, and data sets are made of.
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


def list_image_files(folder: str | Path, subfolders: bool = False) -> list[Path]:
    """Return the files of a folder that are named like images, sorted by name; none if there is no such folder.

    Args:
        folder (str | Path): The folder.
        subfolders (bool): Whether to include its subfolders. Defaults to False.
    """
    found = Path(folder).glob('**/*' if subfolders else '*')
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
