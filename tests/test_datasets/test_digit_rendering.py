"""Drawing of digits and backgrounds, on cases worked out by hand."""

import numpy as np
import pytest

from pelk_mm.datasets.digit_rendering import (
    load_photographs,
    paste,
    random_background,
    random_color,
    random_digit,
    render_digit,
    to_image,
)

# A vertical bar of 8 cells by 2, with a foot to the right at its lower end: an L.
L_SHAPE = np.zeros((8, 8))
L_SHAPE[:, 2:4] = 1
L_SHAPE[6:, 4:6] = 1


def render(digit=L_SHAPE, size=32, angle=0, stretch=1.0, weight=0.5):
    return render_digit(digit, size=size, angle=angle, stretch=stretch, weight=weight)


def test_upright():
    opacity = render()
    mask = opacity >= 0.5
    assert mask.shape[0] == pytest.approx(32, abs=3)
    assert mask.shape[1] == pytest.approx(16, abs=3)
    # The bar has the left half, the foot only the last quarter of the right half.
    assert mask[2:-2, 2:6].all()
    assert not mask[:20, -5:].any()
    assert mask[-6:-2, 2:-2].all()
    assert opacity.min() >= 0
    assert opacity.max() == 1


def test_rotation_is_anticlockwise():
    mask = render(angle=90) >= 0.5
    assert mask.shape[0] == pytest.approx(16, abs=3)
    assert mask.shape[1] == pytest.approx(32, abs=3)
    # The foot pointed right, so now it points up, and it was at the lower end, which is now on the right.
    assert mask[2:6, -6:-2].all()
    assert not mask[:5, :20].any()


def test_size_is_the_longer_side_for_every_angle():
    for angle in (-30, 0, 45):
        for size in (16, 40, 100):
            assert max((render(size=size, angle=angle) >= 0.5).shape) == pytest.approx(size, rel=0.1, abs=2)


def test_stretch_widens():
    height, width = (render(stretch=2.0) >= 0.5).shape
    assert width / height == pytest.approx(1, abs=0.1)


def test_weight_decides_what_counts_as_ink():
    faint = L_SHAPE * 0.45
    faint[:, 2:4] = 1
    assert (render(faint, weight=0.6) >= 0.5).shape[1] < (render(faint, weight=0.3) >= 0.5).shape[1]


def test_random_digits_vary_within_the_range():
    rng = np.random.RandomState(0)
    sizes = [max((random_digit(rng, L_SHAPE, (20, 40), 20) >= 0.5).shape) for _ in range(50)]
    assert 18 <= min(sizes) < 24
    assert 35 < max(sizes) <= 44


def test_photographs_of_the_parts_do_not_overlap():
    photos = load_photographs()
    for train, val in zip(photos['train'], photos['val']):
        assert train.width + val.width == 640
        assert train.height == val.height == 427


def test_backgrounds_are_dim_and_differ():
    rng = np.random.RandomState(0)
    photos = load_photographs()['val']
    backgrounds = [random_background(rng, 48, photos) for _ in range(40)]
    assert all(background.shape == (48, 48, 3) for background in backgrounds)
    assert min(background.min() for background in backgrounds) >= 0
    assert max(background.max() for background in backgrounds) <= 0.6
    means = np.array([background.mean(axis=(0, 1)) for background in backgrounds])
    assert means.std(axis=0).min() > 0.05


@pytest.mark.parametrize('ground', [(0, 0, 0), (0.6, 0.6, 0.6), (0.1, 0.6, 0.2)])
def test_colors_stand_out(ground):
    rng = np.random.RandomState(0)
    surroundings = np.broadcast_to(np.array(ground, dtype=float), (9, 9, 3))
    colors = np.array([random_color(rng, surroundings) for _ in range(20)])
    assert np.linalg.norm(colors - ground, axis=1).min() > 0.3
    assert len(np.unique(colors, axis=0)) == 20


def test_paste_blends_inside_its_window_only():
    canvas = np.zeros((4, 5, 3))
    paste(canvas, np.array([[1.0, 0.5]]), top=2, left=3, color=np.array([1.0, 0.5, 0.0]))
    assert canvas[2, 3].tolist() == [1.0, 0.5, 0.0]
    assert canvas[2, 4].tolist() == [0.5, 0.25, 0.0]
    canvas[2, 3:] = 0
    assert not canvas.any()


def test_to_image_rounds_and_clips():
    image = np.asarray(to_image(np.array([[[0.0, 0.5, 2.0]]])))
    assert image.dtype == np.uint8
    assert image.tolist() == [[[0, 128, 255]]]
