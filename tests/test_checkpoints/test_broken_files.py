"""Converters on files that are broken or hold what nobody expects: a clean error with the file's name, or success.

Nothing else may come out, and nothing be left behind. ``--hypothesis-profile=pelk_mm_search`` searches for longer.
"""

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from pelk_mm.checkpoints.convert import BACKBONE_NAMES, CONVNEXT_NAMES, SLAK_NAMES, convert_file, rename
from pelk_mm.checkpoints.publish import publish_file

from ..helpers.strategies import damaged

NAMES = (BACKBONE_NAMES, CONVNEXT_NAMES, SLAK_NAMES)


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


GOOD = dict(
    meta=dict(epoch=1, cfg='a = 1', dataset_meta=dict(classes=('a', 'b'))),
    state_dict={f'backbone.norm{i}.weight': torch.arange(8.) for i in range(3)},
    message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])), runtime_info=dict(best=np.float64(0.5))))
SOUND = (saved(GOOD), saved(GOOD, _use_new_zipfile_serialization=False))

# What weights_only lets through, of any depth.
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=8),
              st.binary(max_size=8), st.just(torch.ones(2)), st.just(torch.zeros(0, dtype=torch.int8)),
              st.just(torch.tensor([1j])), st.just(torch.eye(2).to_sparse()), st.just(np.float32(1)),
              st.just(np.arange(3)), st.just(torch.nn.Parameter(torch.ones(1)))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(
        st.one_of(st.sampled_from(['state_dict', 'model', 'meta', 'norm.weight', 'backbone.a.weight', 'head.bias']),
                  st.text(max_size=4), st.integers(), st.tuples(st.integers())), inner, max_size=4),
                            st.dictionaries(st.text(max_size=4), inner, max_size=2).map(OrderedDict)),
    max_leaves=8)


# Names of which some are as released, some nearly so, and some anything.
PARTS = ('module.', 'backbone.', 'norm.', 'norm3.', 'head.', 'decode_head.', 'downsample_layers.0.', 'stages.0.0.',
         'large_kernel.LoRA1.conv.', 'dwconv.', 'pwconv1.', 'gamma', 'weight', 'bias')
TENSOR_NAMES = st.one_of(
    st.tuples(
        st.sampled_from(['', 'backbone.', 'module.backbone.']),
        st.sampled_from(['norm.', 'norm3.', 'head.', 'stages.0.0.norm.', 'stages.0.0.dwconv.', 'stages.0.0.pwconv1.']),
        st.sampled_from(['weight', 'bias'])).map(''.join),
    st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=4).map(''.join))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('broken')


def convert_and_publish(folder, content: bytes, key=None) -> int:
    """Both on one file; how many of them succeeded."""
    source, target, done = folder / 'source.pth', folder / 'target.pth', 0
    source.write_bytes(content)
    for work in (*(lambda names=names: convert_file(str(source), str(target), names, key) for names in NAMES),
                 lambda: publish_file(str(source), str(target))):
        try:
            work()
            done, message = done + 1, ''
        except ValueError as error:
            message = str(error)
        # Of two tensors that would get one name no file needs to be named.
        assert not message or str(source) in message or 'two tensors would become' in message
        assert not message or {file.name for file in folder.iterdir()} == {'source.pth'}
        for file in folder.iterdir():
            if file != source:
                assert isinstance(torch.load(file, weights_only=False)['state_dict'], dict)
                file.unlink()
    return done


def test_sound_files_are_converted(folder):
    for content in SOUND:
        assert convert_and_publish(folder, content) == 4


@given(st.binary(max_size=200))
def test_random_bytes(folder, content):
    assert convert_and_publish(folder, content) == 0


@given(st.sampled_from(SOUND).flatmap(damaged))
def test_damaged_files(folder, content):
    convert_and_publish(folder, content)


@given(PLAIN, st.sampled_from([None, 'state_dict', 'meta', 'nothing']))
def test_anything_that_can_be_saved(folder, content, key):
    convert_and_publish(folder, saved(content), key)


@given(st.lists(TENSOR_NAMES, max_size=8, unique=True), st.sampled_from(NAMES))
def test_renaming_loses_no_tensor(drawn, names):
    tensors = {name: torch.tensor(number) for number, name in enumerate(drawn)}
    # Renamed one at a time, no tensor takes another's name.
    new = [name for old, tensor in tensors.items() for name in rename({old: tensor}, names)[0]]
    event(f'{len(new)} matched, {len(set(new))} names')
    if len(set(new)) < len(new):
        with pytest.raises(ValueError, match='two tensors would become'):
            rename(tensors, names)
        return
    converted, unmatched = rename(tensors, names)
    assert list(converted) == new
    kept = [*map(int, converted.values()), *map(drawn.index, unmatched)]
    assert sorted(kept) == list(range(len(drawn)))


def test_a_published_file_can_be_published_again(folder):
    (folder / 'source.pth').write_bytes(SOUND[0])
    first, *_ = publish_file(str(folder / 'source.pth'), str(folder / 'a.pth'))
    again, *_ = publish_file(str(first), str(folder / 'b.pth'))
    assert torch.load(again, weights_only=True)['meta'] == torch.load(first, weights_only=True)['meta']
