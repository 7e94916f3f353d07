"""Relative position biases of a checkpoint with other windows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import nn

from pelk_mm.engine import ResizePositionBiasHook

ARCH = dict(embed_dims=8, depths=[1, 1], num_heads=[2, 4])


class Wrapper(nn.Module):
    """A model that holds a backbone, as classifiers do."""

    def __init__(self, window):
        super().__init__()
        self.backbone = MODELS.build(
            dict(type='mmpretrain.SwinTransformer', arch=ARCH, img_size=96, window_size=window, out_indices=(1, )))


def runner_of(model):
    return SimpleNamespace(model=model, logger=MMLogger.get_current_instance())


def resized(state_dict, model, **checkpoint):
    checkpoint = dict(state_dict=state_dict, **checkpoint)
    ResizePositionBiasHook().after_load_checkpoint(runner_of(model), checkpoint)
    return checkpoint['state_dict']


def tables(state_dict):
    return {name: value for name, value in state_dict.items() if name.endswith('bias_table')}


@pytest.mark.parametrize('before, after', [(7, 12), (12, 7), (7, 8)])
def test_a_slope_keeps_its_values(before, after):
    """Within a twentieth, for PyTorch's cubic kernel: row i of the new table lies at (i + 0.5) * old / new - 0.5."""
    source, target = Wrapper(before).state_dict(), Wrapper(after)
    old, new = 2 * before - 1, 2 * after - 1
    rows = torch.arange(old, dtype=torch.float32).repeat_interleave(old)
    for table in tables(source).values():
        # Each head has a slope of its own.
        table.copy_(rows[:, None] * torch.arange(1, table.shape[1] + 1))
    found = tables(resized(source, target))
    assert [tuple(table.shape) for table in found.values()] == [(new * new, 2), (new * new, 4)]
    places = (np.arange(new) + 0.5) * old / new - 0.5
    # Away from the border, where cubic interpolation repeats the outermost values.
    inner = (places > 1) & (places < old - 2)
    assert inner.sum() > new / 2
    for table in found.values():
        image = table.reshape(new, new, -1).numpy()
        for head in range(image.shape[2]):
            expected = np.repeat((head + 1) * places[inner, None], new, 1)
            np.testing.assert_allclose(image[inner, :, head], expected, rtol=0, atol=0.05 * (head + 1))
    # Nothing is left for mmpretrain to resize, and every key fits.
    target.load_state_dict(source, strict=True)
    assert target.backbone.stages[0].blocks[0].attn.w_msa.relative_position_index.max() == new * new - 1


def test_directions_of_the_table():
    """Heads and axes are not exchanged."""
    source, target = Wrapper(2).state_dict(), Wrapper(4)
    name = next(iter(tables(source)))
    for value in tables(source).values():
        value.zero_()
    # The leftmost column of head 1.
    source[name].view(3, 3, 2)[:, 0, 1] = 1.0
    table = resized(source, target)[name].view(7, 7, 2)
    assert not table[..., 0].any()
    torch.testing.assert_close(table[..., 1], table[:1, :, 1].expand(7, 7))
    assert table[0, 0, 1] > 0.9
    assert abs(table[0, -1, 1]) < 0.1


@pytest.mark.parametrize('key', ['state_dict', None])
def test_equal_windows_and_other_entries_stay(key):
    source, target = Wrapper(3).state_dict(), Wrapper(3)
    before = {name: value.clone() for name, value in source.items()}
    checkpoint = {key: source} if key else source
    ResizePositionBiasHook().after_load_checkpoint(runner_of(target), checkpoint)
    assert source.keys() == before.keys()
    assert all(torch.equal(source[name], before[name]) for name in source)


def test_wrapped_names_and_half_precision():
    source = {f'module.{name}': value.half() if value.is_floating_point() else value
              for name, value in Wrapper(2).state_dict().items()}
    found = resized(source, Wrapper(3))
    assert {(tuple(table.shape), table.dtype) for table in tables(found).values()} == {
        ((25, 2), torch.float16), ((25, 4), torch.float16)
    }


def test_models_without_tables():
    state_dict = nn.Linear(2, 2).state_dict()
    assert resized(dict(state_dict), nn.Linear(2, 2)).keys() == state_dict.keys()
