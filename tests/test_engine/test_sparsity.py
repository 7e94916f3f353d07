"""The choice of sparse weights, their densities and masks, pruning and growth: against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from pelk_mm.engine.sparsity import (
    cosine_prune_rate,
    draw_masks,
    erk_densities,
    find_sparse_parameters,
    group_densities,
    pack_mask,
    prune_and_grow,
    saliencies,
    snip_densities,
    uniform_densities,
    unpack_mask,
)
from pelk_mm.models import PeLK


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_only_trained_2d_and_4d_weights_are_found():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv1d(4, 4, 3), nn.Linear(4, 2))
    assert list(find_sparse_parameters(model)) == ['0.weight', '3.weight']
    model[0].weight.requires_grad = False
    assert list(find_sparse_parameters(model)) == ['3.weight']


def test_patterns_choose_and_leave_out():
    net = nn.ModuleDict(
        dict(conv=nn.Conv2d(3, 16, 3), norm=nn.BatchNorm2d(16), hidden=nn.Linear(16, 16), head=nn.Linear(16, 4)))
    assert list(find_sparse_parameters(net, include=r'^(conv|head)\.')) == ['conv.weight', 'head.weight']
    assert list(find_sparse_parameters(net, exclude=['conv', 'hidden'])) == ['head.weight']
    for argument in ('include', 'exclude'):
        with pytest.raises(ValueError, match=f"{argument} .*'backbone'.* matches none of 3"):
            find_sparse_parameters(net, **{argument: ['head', 'backbone']})


def test_backbone_names_its_sparse_weights():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = PeLK('atto')
            self.head = nn.Linear(self.backbone.channels[-1], 10)

    model = Classifier()
    names = set(find_sparse_parameters(model))
    assert 'head.weight' in names
    assert 'backbone.stages.0.blocks.0.mixer.mixer.convs.large.weight' in names
    assert 'backbone.downsample_layers.0.0.weight' in names
    assert not [name for name in names if name.endswith('.bias') or 'norm' in name or 'embedding' in name]
    stem = model.backbone.downsample_layers[0][0].weight
    model.backbone.get_sparse_parameters = lambda: {'downsample_layers.0.0.weight': stem}
    assert set(find_sparse_parameters(model)) == {'backbone.downsample_layers.0.0.weight', 'head.weight'}


def test_erk_against_hand_values():
    # 4x4x1x1: sides 10, size 16; 20x20: sides 40, size 400. Density 0.25 of 416 is 104 = scale * (10 + 40).
    weights = dict(a=torch.zeros(4, 4, 1, 1), b=torch.zeros(20, 20))
    # scale 2.08 would give a 2.08 * 10 / 16 = 1.3: a is full, and b gets (104 - 16) / 400.
    assert erk_densities(weights, 0.25) == pytest.approx(dict(a=1.0, b=0.22))
    # 0.1 of 416: scale 0.832.
    assert erk_densities(weights, 0.1) == pytest.approx(dict(a=0.52, b=0.0832))
    assert erk_densities(dict(a=torch.zeros(2, 2)), 0.9) == pytest.approx(dict(a=0.9))


def test_snip_against_a_two_layer_net():
    # y = v . (W x) with W = [[1, 2], [3, 4]], v = [1, -2], x = [1, 3]; loss = y.
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[1., 2.], [3., 4.]])
    net[1].weight.data = torch.tensor([[1., -2.]])
    found = saliencies(net(torch.tensor([[1., 3.]])).sum(), find_sparse_parameters(net))
    # dy/dW = v x^T = [[1, 3], [-2, -6]]; dy/dv = W x = [7, 15].
    assert found['0.weight'].tolist() == [[1, 6], [6, 24]]
    assert found['1.weight'].tolist() == [[7, 30]]
    assert net[0].weight.grad is None
    # Half of six: 30, 24 and 7.
    assert snip_densities(found, 0.5) == {'0.weight': 0.25, '1.weight': 1.0}
    # Five of six, one of the two sixes included.
    assert snip_densities(found, 5 / 6) == {'0.weight': 0.75, '1.weight': 1.0}


def test_snip_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match='finite'):
        snip_densities(dict(a=torch.tensor([1., float('nan')])), 0.5)
    with pytest.raises(ValueError, match='keep 3 weights, but only 1 have a gradient'):
        snip_densities(dict(a=torch.tensor([1., 0., 0., 0.])), 0.75)


@pytest.mark.parametrize('density', [0.001, 0.25, 0.6, 0.98])
def test_masks_have_their_density_within_rounding(density):
    weights = dict(a=torch.zeros(7, 11), b=torch.zeros(13, 1, 5, 5))
    masks = draw_masks(weights, uniform_densities(weights, density), generator())
    for name, mask in masks.items():
        assert mask.shape == weights[name].shape
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == max(1, round(density * mask.numel()))
    assert not torch.equal(masks['a'], draw_masks(weights, dict(a=density, b=density), generator(1))['a'])


def test_layers_of_density_099_stay_dense():
    weights = dict(a=torch.zeros(10, 10), b=torch.zeros(10, 10))
    assert list(draw_masks(weights, dict(a=0.99, b=0.9899), generator())) == ['b']


def test_cosine_against_hand_values():
    rates = [cosine_prune_rate(step, 100, 0.5, 0.1) for step in (0, 25, 50, 75, 100, 120)]
    quarter = 0.2 * math.sqrt(0.5)
    assert rates == pytest.approx([0.5, 0.3 + quarter, 0.3, 0.3 - quarter, 0.1, 0.1])


def test_pruned_are_the_smallest_and_grown_come_from_the_dead():
    weight = torch.randn(50, 20, generator=generator())
    mask = torch.rand(50, 20, generator=generator(1)) < 0.6
    live = int(mask.sum())
    new, count = prune_and_grow(weight, mask, 0.3, generator(2))
    assert count == round(0.3 * live)
    assert int(new.sum()) == live
    smallest = weight.abs()[mask].sort().values[:count]
    pruned, grown = mask & ~new, new & ~mask
    assert int(pruned.sum()) == int(grown.sum()) > 0
    assert weight.abs()[pruned].max() <= smallest[-1]
    # Above the threshold nothing is touched.
    assert new[mask & (weight.abs() > smallest[-1])].all()
    assert not torch.equal(new, prune_and_grow(weight, mask, 0.3, generator(3))[0])


def test_grown_positions_are_spread_evenly():
    weight, mask = torch.arange(1., 101.), torch.arange(100) >= 50
    counts = sum(prune_and_grow(weight, mask, 0.5, generator(seed))[0].float() for seed in range(400))
    # 25 of the 75 dead positions are drawn each time: 133 of 400, deviation 9.4.
    assert counts[:75].min() > 133 - 5 * 9.4
    assert counts[:75].max() < 133 + 5 * 9.4
    assert (counts[75:] == 400).all()


@pytest.mark.parametrize('shape', [(1, ), (8, ), (3, 1, 5, 5), (16, 27)])
def test_masks_pack_to_bits(shape):
    mask = torch.rand(shape, generator=generator()) < 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(mask.numel() / 8)
    assert torch.equal(unpack_mask(packed, shape), mask)


def test_groups_are_stages_and_modules():
    names = ['backbone.stages.0.blocks.0.a.weight', 'backbone.stages.0.blocks.1.a.weight',
             'backbone.downsample_layers.1.1.weight', 'head.fc.weight']
    weights = {name: torch.zeros(2, 2) for name in names}
    masks = {names[0]: torch.tensor([[True, False], [False, False]])}
    assert group_densities(weights, masks) == {
        'backbone.stages.0': 5 / 8, 'backbone.downsample_layers.1': 1.0, 'head.fc': 1.0
    }
