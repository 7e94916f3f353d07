"""N:M sparsity: the pattern of the masks, its updates, and that it lasts through training, resuming and fine-tuning."""

import pytest
import torch
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from pelk_mm.engine.sparsity import Pattern, find_sparse_parameters
from pelk_mm.models import PeLK

from .small_runs import average_of, sparsity_hook, trained

HALF = Pattern(2, 4)
UPDATED = dict(pattern='2:4', init='magnitude', update_interval=3, prune_rate=0.5)


def live_in_groups(tensor, group=4):
    return {int(count) for count in (tensor != 0).view(-1, group).sum(1)}


def test_one_weight_of_the_weakest_groups_is_exchanged():
    weight = torch.tensor([[0.9, -0.8, 0.0, 0.0, 0.1, 0.0, -0.7, 0.0], [0.0, 0.0, 0.3, 0.2, 0.0, 0.6, 0.5, 0.0]])
    mask = weight != 0
    seen = set()
    for seed in range(40):
        # The smallest live weights of the four groups are 0.8, 0.1, 0.2 and 0.5.
        new, count = HALF.prune_and_grow(weight, mask, 0.5, torch.Generator().manual_seed(seed))
        assert count == 2
        assert live_in_groups(new) == {2}
        assert torch.equal(new[0, :4], mask[0, :4])
        assert torch.equal(new[1, 4:], mask[1, 4:])
        assert new[0, 4:].tolist() in ([False, True, True, False], [False, False, True, True])
        assert new[1, :4].tolist() in ([True, False, True, False], [False, True, True, False])
        seen.add(str(new.tolist()))
    assert len(seen) == 4
    assert torch.equal(HALF.prune_and_grow(weight, mask, 0.0, torch.Generator())[0], mask)


def test_the_largest_of_each_group_stay():
    scores = torch.tensor([[3.0, 1.0, 2.0, 4.0, 0.0, 0.0, 0.0, 5.0]])
    mask = HALF.mask(scores)
    assert mask[0, :4].tolist() == [True, False, False, True]
    # Zeros fill a group up.
    assert live_in_groups(mask) == {2}
    assert mask[0, 7]
    assert HALF.holds(mask)
    assert HALF.holds(torch.zeros(2, 8))
    assert not HALF.holds(scores)
    assert not HALF.holds(torch.zeros(2, 6))


@pytest.mark.parametrize('init', ['magnitude', 'uniform'])
@pytest.mark.parametrize('pattern', ['2:4', '1:8'])
def test_every_group_has_its_live_weights_after_every_step(tmp_path, init, pattern):
    live, group = Pattern.parse(pattern)
    masks = []

    def watch(runner):
        hook = sparsity_hook(runner)
        assert sorted(hook.masks) == ['head.weight', 'hidden.weight']
        for name, mask in hook.masks.items():
            assert live_in_groups(mask, group) == {live}
            for model in (runner.model, average_of(runner)):
                assert (model.get_parameter(name)[~mask] == 0).all()
        assert runner.model.conv.weight.count_nonzero() == runner.model.conv.weight.numel()
        masks.append(hook.masks['hidden.weight'].clone())

    sparsity = dict(pattern=pattern, init=init, update_interval=2, prune_rate=0.3)
    trained(tmp_path, sparsity, ema=True, watch=watch, steps=10)
    # Updates after steps 2, 4, 6 and 8.
    assert [not torch.equal(a, b) for a, b in zip(masks, masks[1:])] == [True, False] * 4 + [False]


def test_training_resumes_only_with_its_pattern(tmp_path):
    trained(tmp_path, UPDATED, steps=2)
    stop = str(tmp_path / 'iter_2.pth')
    for sparsity, got in ((dict(UPDATED, pattern='1:4'), '1:4'), (dict(init='uniform', sparsity=0.5), 'None')):
        with pytest.raises(ValueError, match=f'pattern is {got}, the masks of the checkpoint have 2:4'):
            trained(tmp_path, sparsity, resume=True, load_from=stop)


def test_fine_tuning_keeps_the_pattern_of_the_layers_that_have_it(tmp_path):
    sparse = trained(tmp_path, dict(UPDATED, exclude='head'), steps=4, interval=3)
    # Saved right after an update: what was grown is zero.
    path = str(tmp_path / 'iter_3.pth')
    loaded = torch.load(path, weights_only=False)['state_dict']['hidden.weight']
    assert live_in_groups(loaded) == {1, 2}
    runner = trained(tmp_path, dict(pattern='2:4', init='zeros', update_interval=1), steps=3, load_from=path)
    assert list(sparsity_hook(runner).masks) == ['hidden.weight']
    assert live_in_groups(runner.model.hidden.weight) == {2}
    assert runner.model.head.weight.count_nonzero() == runner.model.head.weight.numel()
    assert sparse.model.hidden.weight.shape == (32, 16)


def test_a_model_without_groups_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'pattern 2:7 needs 2-D weights with a multiple of 7 inputs, none of 3'):
        trained(tmp_path, dict(pattern='2:7', init='uniform'), steps=1)


def test_the_pointwise_layers_of_width_1_have_groups():
    """At width 1.3 the layers after the activation have them, of those before it only the first stage's."""
    found = {}
    for width_factor in (1.0, 1.3):
        with torch.device('meta'):
            model = PeLK('tiny', width_factor=width_factor)
        linear = {name: weight for name, weight in find_sparse_parameters(model).items() if weight.ndim == 2}
        found[width_factor] = sum(HALF.fits(weight) for weight in linear.values()), len(linear)
    assert found == {1.0: (36, 36), 1.3: (21, 36)}


@torch.no_grad()
def test_sparse_tensor_cores_compute_the_dense_product():
    """PyTorch's compressed form for them has exactly these weights, and half of the values."""
    layer = nn.Linear(128, 64, bias=False).bfloat16()
    layer.weight.mul_(HALF.mask(layer.weight.abs()))
    values, positions = sparse_semi_structured_from_dense_cutlass(layer.weight)
    assert values.shape == (64, 64)
    restored = sparse_semi_structured_to_dense_cutlass(values, positions)
    assert torch.equal(restored, layer.weight)
    x = torch.randn(8, 128).bfloat16()
    assert torch.equal(nn.functional.linear(x, restored), layer(x))
