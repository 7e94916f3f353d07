"""One list of what is an image, for everything that looks for images."""

import pytest
from PIL import Image

from pelk_mm.analysis.erf import find_images
from pelk_mm.datasets.check import check_images
from pelk_mm.deploy import list_images
from pelk_mm.engine.image_files import read_image
from pelk_mm.image_names import IMAGE_SUFFIXES, list_image_files


@pytest.fixture
def folder(tmp_path):
    """An image of every kind, of upper case too, one in a subfolder, and files that are not images."""
    for suffix in (*IMAGE_SUFFIXES, '.PNG'):
        Image.new('L' if suffix == '.pgm' else 'RGB', (8, 6)).save(tmp_path / f'image{suffix}')
    (tmp_path / 'sub.png').mkdir()
    Image.new('RGB', (8, 6)).save(tmp_path / 'sub.png' / 'a.jpg')
    (tmp_path / 'labels.txt').touch()
    (tmp_path / 'png').touch()
    return tmp_path


def test_images_are_listed_by_name(folder):
    own = sorted(f'image{suffix}' for suffix in (*IMAGE_SUFFIXES, '.PNG'))
    assert [path.name for path in list_image_files(folder)] == own
    assert [path.name for path in list_image_files(folder, subfolders=True)] == [*own, 'a.jpg']
    assert list_image_files(folder / 'nowhere') == []


def test_everything_that_looks_for_images_finds_the_same(folder):
    assert list_images(folder) == list_image_files(folder)
    assert find_images(folder, 100) == list_image_files(folder, subfolders=True)
    items = check_images(folder)
    number = len(list_image_files(folder, subfolders=True))
    assert [item.found for item in items] == [f'{number} of {number} images are undamaged']


def test_everything_that_is_found_can_be_read(folder):
    for path in list_image_files(folder):
        assert read_image(str(path)).shape == (6, 8, 3)
