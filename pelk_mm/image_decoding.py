"""Whether an image file can be decoded to its end, by any of the decoders that mmcv offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, UnidentifiedImageError


def decoding_error(path: str | Path, other_decoders: bool = True) -> str:
    """Return why an image cannot be decoded to its end, '' if it can.

    Pillow reports incomplete files, while OpenCV fills the missing part with grey. Large images are decoded too.

    Args:
        path (str | Path): The file.
        other_decoders (bool): Use OpenCV and tifffile for formats that Pillow does not know; with False these pass.
            Defaults to True.
    """
    try:
        with _no_size_limit(), Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, NotImplementedError) as error:
        return '' if not other_decoders or _decoded_by_others(str(path)) else str(error)
    # Pillow raises nearly anything.
    except Exception as error:
        return str(error).rstrip('.') or type(error).__name__
    return ''


@contextmanager
def _no_size_limit() -> Iterator[None]:
    """Lift Pillow's limit of 179 million pixels, which is meant for images from strangers."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decoded_by_others(path: str) -> bool:
    from mmcv.image import imread
    for backend in ('cv2', *(['tifffile'] if find_spec('tifffile') else [])):
        try:
            if imread(path, 'unchanged', backend=backend) is not None:
                return True
        # Each has errors of its own for a format it does not know.
        except Exception:
            continue
    return False
