import pytest

from pelk_mm.datasets import make_digit_scenes


@pytest.fixture(scope='session')
def small():
    """Arguments of a small set: as few images as the tests need."""
    return dict(num_cls_train=40, num_cls_val=20, num_scenes_train=12, num_scenes_val=6)


@pytest.fixture(scope='session')
def digit_scenes(tmp_path_factory, small):
    """A small set, made with all other arguments at their defaults. Tests only read it."""
    folder = tmp_path_factory.mktemp('data') / 'digit_scenes'
    make_digit_scenes(folder, **small)
    return folder
