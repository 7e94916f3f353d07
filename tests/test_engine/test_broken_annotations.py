"""The check of COCO files on mutated JSON: an error with the file's name and a fix, or success; nothing else."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelk_mm.engine.annotation_files import check_coco_file

BOX = dict(image_id=7, category_id=1, bbox=[0, 0, 4, 4], area=16, iscrowd=0, segmentation=[[0, 0, 4, 0, 4, 4]])
GOOD = dict(
    images=[dict(id=7, file_name='a.png', height=8, width=8)],
    annotations=[dict(BOX, id=1), dict(BOX, id=2)],
    categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just(10**400)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(['id', 'name', 'images', 'bbox', 'file_name', 'x']), inner, max_size=3)),
    max_leaves=6)


@st.composite
def mutated(draw):
    """Good content with some of its parts, at any depth, replaced or taken out."""
    content = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        node = content
        while True:
            if not node:
                break
            key = draw(st.sampled_from(sorted(node))) if isinstance(node, dict) else draw(
                st.integers(0, len(node) - 1))
            if isinstance(node[key], (dict, list)) and draw(st.booleans()):
                node = node[key]
            elif draw(st.booleans()):
                node[key] = draw(VALUES)
                break
            else:
                del node[key]
                break
    return content


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    return tmp_path_factory.mktemp('coco') / 'instances.json'


def check(file, content: bytes, **options) -> str:
    """The error, '' if absent."""
    file.write_bytes(content)
    try:
        check_coco_file(str(file), classes=('cat', 'dog'), **options)
    except ValueError as error:
        told = str(error)
    else:
        return ''
    assert told.startswith('ann_file: ')
    assert str(file) in told
    return told


OPTIONS = st.fixed_dictionaries(dict(with_mask=st.booleans(), may_be_empty=st.booleans()))


@given(mutated(), OPTIONS)
def test_mutated_content(file, content, options):
    error = check(file, json.dumps(content).encode(), **options)
    if not error:
        # What passes has what mmdet reads.
        assert {category['name'] for category in content['categories']} >= {'cat', 'dog'}
        assert all(set(image) >= {'id', 'file_name', 'height', 'width'} for image in content['images'])
        assert all(len(item['bbox']) == 4 for item in content.get('annotations') or ())


@given(VALUES, OPTIONS)
def test_anything_in_json(file, content, options):
    assert check(file, json.dumps(content).encode(), **options)


DEEP = st.sampled_from([b'[' * 100_000, b'{"a":' * 100_000, b'9' * 5000, b'\xef\xbb\xbf{}'])


@given(st.one_of(st.binary(max_size=60), DEEP), OPTIONS)
def test_anything(file, content, options):
    assert check(file, content, **options)
