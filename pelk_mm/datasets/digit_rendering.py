"""Draw the built-in data: handwritten digits as smooth strokes, and backgrounds for them.

Random functions take a ``numpy.random.RandomState``, whose stream is frozen across NumPy versions, so that both
OpenMMLab stacks make the same images. Colours and images are RGB, float64 in [0, 1]; sizes are in pixels.
"""

import colorsys
import math

import numpy as np
from PIL import Image
from scipy import ndimage

from ..install_hints import require

# The photographs are cut at this share of their width: crops for training come from the left, for validation from
# the right, so that the two parts share no background pixel either.
PHOTO_SPLIT = 0.7


def load_handwritten_digits() -> tuple[np.ndarray, np.ndarray]:
    """Load the handwritten digits that come with scikit-learn.

    Returns:
        tuple: images of shape (1797, 8, 8), float64 in [0, 1], and their classes 0 .. 9 of shape (1797, ), int64.
    """
    # Imported here, as the rest of the package does without scikit-learn.
    require('sklearn', by='the built-in data set')
    from sklearn.datasets import load_digits
    digits = load_digits()
    return digits.images / 16.0, digits.target


def load_photographs() -> dict[str, list[Image.Image]]:
    """Load scikit-learn's two sample photographs, cut into a part for training and one for validation.

    Returns:
        dict: 'train' and 'val', each a list of two RGB images.
    """
    require('sklearn', by='the built-in data set')
    from sklearn.datasets import load_sample_image
    parts = {'train': [], 'val': []}
    for name in ('china.jpg', 'flower.jpg'):
        photo = Image.fromarray(load_sample_image(name))
        cut = int(photo.width * PHOTO_SPLIT)
        parts['train'].append(photo.crop((0, 0, cut, photo.height)))
        parts['val'].append(photo.crop((cut, 0, photo.width, photo.height)))
    return parts


def render_digit(digit: np.ndarray, size: float, angle: float, stretch: float, weight: float) -> np.ndarray:
    """Draw one handwritten digit as an antialiased stroke.

    Cubic splines interpolate the 8x8 image, which restores the outline of the stroke from its grey levels. A threshold
    then gives an edge about one pixel wide.

    Args:
        digit (np.ndarray): Shape (8, 8), values in [0, 1].
        size (float): Longer side of the drawn digit in pixels.
        angle (float): Anticlockwise rotation in degrees.
        stretch (float): Width relative to the written one.
        weight (float): Level that counts as ink, in (0, 1): the lower, the bolder the stroke.

    Returns:
        np.ndarray: Opacity of shape (h, w), float64 in [0, 1], cropped to the inked rows and columns.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    to_cells = np.array([[cos, sin], [-sin / stretch, cos / stretch]])
    to_pixels = np.linalg.inv(to_cells)

    inked = to_pixels @ np.stack(np.nonzero(digit > weight)).astype(float)
    low, high = inked.min(axis=1), inked.max(axis=1)
    pixels_per_cell = size / ((high - low).max() + 1)

    side = math.ceil(size) + 8
    offsets = (np.indices((side, side)).reshape(2, -1) - (side - 1) / 2) / pixels_per_cell
    cells = to_cells @ (offsets + ((low + high) / 2)[:, None])
    border = 2
    level = ndimage.map_coordinates(np.pad(digit, border), cells + border, order=3).reshape(side, side)
    opacity = np.clip(0.5 + (level - weight) * pixels_per_cell, 0, 1)

    rows, cols = np.nonzero(opacity)
    return opacity[rows.min():rows.max() + 1, cols.min():cols.max() + 1]


def random_digit(rng: np.random.RandomState, digit: np.ndarray, size_range: tuple[float, float],
                 max_angle: float) -> np.ndarray:
    """Draw a digit by :func:`render_digit`, with random size, rotation, width and stroke weight.

    Longer sides lie between the two of ``size_range``, evenly on a log scale; ``max_angle`` is in degrees to either
    side.
    """
    size = math.exp(rng.uniform(math.log(size_range[0]), math.log(size_range[1])))
    return render_digit(
        digit,
        size=size,
        angle=rng.uniform(-max_angle, max_angle),
        stretch=rng.uniform(0.85, 1.2),
        weight=rng.uniform(0.35, 0.5))


def random_background(rng: np.random.RandomState, size: int, photos: list[Image.Image]) -> np.ndarray:
    """Make a square background (size, size, 3): a crop of one of the photographs, or a generated texture."""
    if rng.uniform() < 0.5:
        photo = photos[rng.randint(len(photos))]
        side = rng.randint(48, min(photo.size) + 1)
        left = rng.randint(photo.width - side + 1)
        top = rng.randint(photo.height - side + 1)
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        image = np.asarray(crop) / 255.0
    else:
        blend = (_noise, _stripes, _checks)[rng.randint(3)](rng, size)
        first, second = rng.uniform(0, 1, (2, 3))
        image = first + (second - first) * blend[..., None]
        image = np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)
    # Dim, for bright digits: figure and ground are separated in minutes of training, the shapes remain to be learned.
    # Tinted, so that two photographs give many colours.
    mean = image.mean(axis=(0, 1))
    return rng.uniform(0.25, 0.6, 3) * (mean + 0.7 * (image - mean))


def random_color(rng: np.random.RandomState, surroundings: np.ndarray) -> np.ndarray:
    """Choose a bright colour (3, ) that stands out from its surroundings (h, w, 3)."""
    candidates = np.array([
        colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.1, 0.7), rng.uniform(0.8, 1)) for _ in range(12)
    ])
    # Every third row and column is enough, and much faster.
    distances = np.linalg.norm(surroundings[::3, ::3].reshape(-1, 1, 3) - candidates, axis=-1)
    # Nearly every pixel has to differ: a low percentile, as the minimum would be decided by a single speck.
    contrast = np.percentile(distances, 10, axis=0)
    distinct = np.flatnonzero(contrast > 0.45)
    return candidates[distinct[0] if len(distinct) else contrast.argmax()]


def paste(canvas: np.ndarray, opacity: np.ndarray, top: int, left: int, color: np.ndarray) -> None:
    """Paint a stroke of some opacity (h, w), which lies inside the canvas (H, W, 3), in place."""
    height, width = opacity.shape
    window = canvas[top:top + height, left:left + width]
    window += opacity[..., None] * (color - window)


def to_image(canvas: np.ndarray) -> Image.Image:
    """Turn a canvas (H, W, 3) into an 8-bit image."""
    return Image.fromarray(np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8))


def _noise(rng: np.random.RandomState, size: int) -> np.ndarray:
    """Draw clouds: the sum of noise at several scales, stretched to [0, 1]."""
    clouds = np.zeros((size, size))
    for octave in range(4):
        sigma = size / 2**(octave + 3)
        layer = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma, mode='wrap')
        clouds += layer / layer.std() / 2**octave
    return (clouds - clouds.min()) / np.ptp(clouds)


def _waves(rng: np.random.RandomState, size: int, angle: float) -> np.ndarray:
    """Draw a sine across the image in the direction ``angle`` (radians), with values in [-1, 1]."""
    rows, cols = np.indices((size, size))
    period = size * rng.uniform(0.06, 0.3)
    along = cols * math.cos(angle) + rows * math.sin(angle)
    return np.sin(2 * math.pi * (along / period + rng.uniform()))


def _stripes(rng: np.random.RandomState, size: int) -> np.ndarray:
    return 0.5 + 0.5 * _waves(rng, size, rng.uniform(0, math.pi))


def _checks(rng: np.random.RandomState, size: int) -> np.ndarray:
    angle = rng.uniform(0, math.pi)
    return 0.5 + 0.5 * np.clip(3 * _waves(rng, size, angle) * _waves(rng, size, angle + math.pi / 2), -1, 1)
