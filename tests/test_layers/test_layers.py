import itertools

import pytest
import torch
from torch import nn

from pelk_mm.layers import (
    KernelPositionEmbedding,
    LayerNorm2d,
    PartialMixer,
    PeripheralConv2d,
    ReparamDepthwiseConv,
)
from pelk_mm.nets import PeLK
from pelk_mm.ops import SharingGrid, expand_kernel, peripheral_conv2d
from pelk_mm.testing.random_weights import randomise


def test_peripheral_conv_is_a_conv_with_the_expanded_kernel():
    conv = randomise(PeripheralConv2d(3, 13)).double()
    dense = nn.Conv2d(3, 3, 13, padding=6, groups=3).double()
    dense.weight.data, dense.bias.data = conv.kernel().unsqueeze(1).data, conv.bias.data
    x = torch.randn(2, 3, 9, 10).double()
    torch.testing.assert_close(conv(x), dense(x))
    assert conv.weight.shape == (3, 1, 9, 9)


@pytest.mark.parametrize('arguments, half', [
    (dict(kernel_size=13), (2, 2, 1, 1, 1)),
    (dict(kernel_size=13, center=3), (3, 2, 1, 1)),
    (dict(kernel_size=13, base=3), (1, 3, 1, 1, 1)),
    (dict(kernel_size=[4, 2, 1]), (4, 2, 1)),
    (dict(grid=[4, 2, 1]), (4, 2, 1)),
    (dict(kernel_size=13, grid=[4, 2, 1]), (4, 2, 1)),
])
def test_every_way_to_say_the_grid(arguments, half):
    assert PeripheralConv2d(2, **arguments).grid.half == half


def test_backend_and_bias_arguments():
    assert PeripheralConv2d(2, 13, bias=False).bias is None
    with pytest.raises(ValueError, match='nonsense'):
        PeripheralConv2d(2, 13, backend='nonsense')(torch.zeros(1, 2, 5, 5))
    with pytest.raises(ValueError, match='15'):
        PeripheralConv2d(2, 15, grid=[4, 2, 1])


def test_position_embedding_is_equation_3():
    """Y(x, y) = sum_ij w(i, j) (X(x + i, y + j) + h(i, j)), the second part written as loops."""
    conv = PeripheralConv2d(2, 13, bias=False).double()
    embedding = KernelPositionEmbedding(2, SharingGrid.create(13)).double()
    w, h = conv.kernel(), embedding.weight
    assert h.shape == (2, 13, 13)
    bias = conv.position_bias(embedding())
    for channel in range(2):
        total = 0.0
        for i, j in itertools.product(range(13), range(13)):
            total += w[channel, i, j].item() * h[channel, i, j].item()
        assert abs(bias[channel].item() - total) < 1e-12


def test_partial_mixer_passes_the_rest_unchanged():
    mixer = PartialMixer(nn.Conv2d(3, 3, 1), 3)
    x = torch.randn(2, 8, 4, 5)
    out = mixer(x)
    assert torch.equal(out[:, 3:], x[:, 3:])
    torch.testing.assert_close(out[:, :3], mixer.mixer(x[:, :3]))
    assert torch.equal(PartialMixer(nn.Identity(), 8)(x), x)


def test_layer_norm_normalises_channels_and_is_channels_last():
    norm = LayerNorm2d(6)
    out = norm(torch.randn(2, 6, 3, 4) * 5 + 2)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 3, 4), atol=1e-4, rtol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert norm.eps == 1e-6


def branches(center, small, norm=nn.BatchNorm2d):
    convs = dict(large=PeripheralConv2d(4, 13, center, bias=norm is None))
    if small:
        convs['small'] = nn.Conv2d(4, 4, small, padding=small // 2, groups=4, bias=norm is None)
    return randomise(ReparamDepthwiseConv(convs, 4, norm)).double().eval()


@pytest.mark.parametrize('center, small, norm, left', [
    (5, 5, nn.BatchNorm2d, ['large']),
    (5, 3, nn.BatchNorm2d, ['large']),
    (7, 5, nn.BatchNorm2d, ['large']),
    # A 5x5 kernel has taps that share a parameter in a smaller centre: it stays a branch.
    (3, 5, nn.BatchNorm2d, ['large', 'small']),
    (1, 5, nn.BatchNorm2d, ['large', 'small']),
    (5, None, nn.BatchNorm2d, ['large']),
    (5, 5, None, ['large']),
])
def test_deploy_equals_training_form(center, small, norm, left):
    module = branches(center, small, norm)
    sums = torch.randn(4, module.large.grid.num_cells, module.large.grid.num_cells).double()
    x = torch.randn(2, 4, 9, 8).double()
    before = module(x, sums)
    constant = module.large.position_bias(sums)
    torch.testing.assert_close(before, module(x) + constant[:, None, None])
    module.switch_to_deploy(sums)
    torch.testing.assert_close(module(x), before)
    assert list(module.convs) == left
    assert not module.norms
    assert module.large.bias is not None
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_merged_kernel_is_the_sum_in_theta():
    """By hand: a 3x3 of ones into the middle of a 13x13 grid's theta."""
    module = ReparamDepthwiseConv(
        dict(large=PeripheralConv2d(1, 13), small=nn.Conv2d(1, 1, 3, padding=1, groups=1)), 1, norm=None)
    with torch.no_grad():
        module.large.weight.zero_()
        module.convs['small'].weight.fill_(1.)
        module.convs['small'].bias.fill_(2.)
    module.switch_to_deploy()
    expected = torch.zeros(9, 9)
    expected[3:6, 3:6] = 1
    assert torch.equal(module.large.weight[0, 0], expected)
    assert module.large.bias.item() == 2
    assert module.large.kernel().sum() == 9


def test_only_batch_norm_folds():
    module = ReparamDepthwiseConv(dict(large=PeripheralConv2d(4, 13, bias=False)), 4, lambda c: nn.GroupNorm(2, c))
    with pytest.raises(TypeError, match='GroupNorm'):
        module.switch_to_deploy()


@pytest.mark.parametrize('affine', [False, True])
@pytest.mark.parametrize('without', ['running statistics', 'bias', 'weight'])
def test_norms_with_parts_missing(without, affine):
    """No running statistics: an error that changes nothing. No bias or weight: folded without."""
    module = branches(5, 5)
    for name in module.norms:
        module.norms[name] = nn.BatchNorm2d(4, affine=affine, track_running_stats=without != 'running statistics')
        if without != 'running statistics':
            setattr(module.norms[name], without, None)
        for buffer in ('running_mean', 'running_var'):
            if getattr(module.norms[name], buffer) is not None:
                nn.init.uniform_(getattr(module.norms[name], buffer), 0.5, 2)
    module.double().eval()
    x = torch.randn(2, 4, 9, 8).double()
    before, state = module(x), module.state_dict()
    if without == 'running statistics':
        with pytest.raises(ValueError, match='norms.large has no running statistics.*track_running_stats=True'):
            module.switch_to_deploy()
        assert module.state_dict().keys() == state.keys()
    else:
        module.switch_to_deploy()
        assert not module.norms
    torch.testing.assert_close(module(x), before)


def test_a_network_is_deployed_wholly_or_not_at_all():
    arch = dict(depths=(1, 2), channels=(8, 8), kernel_sizes=(9, 9))
    net = randomise(PeLK(arch, layer_scale_init_value=1.0)).double().eval()
    x = torch.randn(1, 3, 32, 32).double()
    norms = net.stages[1].blocks[1].mixer.mixer.norms
    norms['small'] = nn.BatchNorm2d(3, track_running_stats=False).double().eval()
    before = net(x)[0]
    with pytest.raises(ValueError, match=r'stages\.1\.blocks\.1\.mixer\.mixer\.norms\.small has no running statistics'):
        net.switch_to_deploy()
    assert len(net.stages[0].blocks[0].mixer.mixer.norms) == 2
    torch.testing.assert_close(net(x)[0], before, rtol=0, atol=0)
    norms['small'] = nn.BatchNorm2d(3).double().eval()
    before = net(x)[0]
    net.switch_to_deploy()
    torch.testing.assert_close(net(x)[0], before)


def test_constant_is_not_cancelled_by_the_norm_in_training():
    module = branches(5, 5).train()
    x, sums = torch.randn(2, 4, 9, 8).double(), torch.randn(4, 9, 9).double()
    difference = module(x, sums) - module(x)
    torch.testing.assert_close(difference, module.large.position_bias(sums)[:, None, None].expand_as(difference))


def test_expanded_kernel_is_not_built_by_the_fast_backends(monkeypatch):
    calls = []
    monkeypatch.setattr('pelk_mm.ops.sharing_grid.torch.Tensor.index_select',
                        lambda *args: calls.append(args) or (_ for _ in ()).throw(AssertionError('expanded')))
    grid = SharingGrid.from_kernel_size(51)
    x, theta = torch.randn(1, 2, 16, 16), torch.randn(2, 13, 13)
    for backend in ('native', 'box_sums'):
        peripheral_conv2d(x, theta, grid, backend=backend)
    assert not calls
    with pytest.raises(AssertionError, match='expanded'):
        expand_kernel(theta, grid)
