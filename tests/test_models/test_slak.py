"""SLaK and the dense kernels on the shared skeleton."""

import pytest
import torch
import torch.nn.functional as F

from pelk_mm.models import PeLK, SLaK
from pelk_mm.testing.random_weights import randomise


def small(**kwargs):
    return SLaK('atto', kernel_sizes=(13, 11, 9, 7), width_factor=1.0, gap_before_final_norm=False, **kwargs)


def test_forward_is_the_sum_of_three_normed_convolutions():
    model = randomise(small().eval())
    block = model.stages[0].blocks[0]
    x = torch.randn(2, 24, 10, 9, generator=torch.Generator().manual_seed(0))
    expected = 0
    for name, padding in dict(vertical=(6, 2), horizontal=(2, 6), small=(2, 2)).items():
        conv, norm = block.mixer.convs[name], block.mixer.norms[name]
        assert conv.bias is None
        branch = F.conv2d(x, conv.weight, padding=padding, groups=24)
        expected = expected + F.batch_norm(branch, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(block.mixer(x), expected)
    assert block.mixer.convs['vertical'].weight.shape == (24, 1, 13, 5)
    assert block.mixer.convs['horizontal'].weight.shape == (24, 1, 5, 13)


def test_deploy_merges_the_square_into_a_stripe():
    model = randomise(small(out_indices=(0, 1, 2, 3)).double().eval())
    x = torch.rand(2, 3, 65, 70, dtype=torch.float64)
    before = model(x)
    model.switch_to_deploy()
    for stage in model.stages:
        for block in stage.blocks:
            assert list(block.mixer.convs) == ['vertical', 'horizontal']
            assert not block.mixer.norms
    for a, b in zip(model(x), before):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_options_take_effect():
    assert list(small(small_kernel=False).stages[0].blocks[0].mixer.convs) == ['vertical', 'horizontal']
    assert small(stripe_width=3).stages[1].blocks[0].mixer.convs['vertical'].weight.shape[-2:] == (11, 3)
    mixer = small(branch_norm_cfg=None).stages[0].blocks[0].mixer
    assert not mixer.norms
    assert mixer.convs['small'].bias is not None
    assert SLaK('atto', width_factor=1.3).channels == SLaK('atto-w1', width_factor=1.3).channels == (31, 62, 124, 249)
    assert SLaK('atto-w1').channels == (24, 48, 96, 192)
    assert SLaK('atto', channels=(8, 16, 24, 32), depths=(1, 1, 1, 2), width_factor=1.0).channels == (8, 16, 24, 32)
    assert SLaK(dict(depths=(1, 1), channels=(8, 16), kernel_sizes=(9, 7)), width_factor=1.0).num_stages == 2


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(arch='tinny'), "did you mean 'tiny'"),
    (dict(arch=dict(depths=(1, ))), 'arch as a dict must have the keys'),
    (dict(arch='atto', kernel_sizes=(51, 49)), 'kernel_sizes must have one entry per stage'),
    (dict(arch='atto', kernel_sizes=(51, 49, 47, 12)), 'kernel_sizes must be odd and above stripe_width'),
    (dict(arch='atto', kernel_sizes=(51, 49, 47, 5)), r'above stripe_width \(5\)'),
    (dict(arch='atto', stripe_width=4), 'stripe_width must be a positive odd number, got 4'),
])
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SLaK(**arguments)


def test_dense_kernels_share_nothing():
    model = PeLK('atto', kernel_sizes=(13, 11, 9, 7), grids='dense', conv_ratio=1, position_embedding=False,
                 width_factor=1.0, gap_before_final_norm=False).double()
    randomise(model.eval())
    assert [grid.num_cells for grid in model.grids] == [13, 11, 9, 7]
    mixer = model.stages[0].blocks[0].mixer
    conv = mixer.mixer.convs['large']
    x = torch.randn(1, 24, 17, 16, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, padding=6, groups=24))
    before = mixer(x)
    mixer.mixer.switch_to_deploy()
    assert list(mixer.mixer.convs) == ['large']
    torch.testing.assert_close(mixer(x), before)
    with pytest.raises(ValueError, match="grids must be 'dense'"):
        PeLK('atto', grids='full')


def test_dense_kernels_have_k_squared_parameters():
    dense, peripheral = (PeLK('tiny', grids=grids, position_embedding=False) for grids in ('dense', None))
    more = sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in peripheral.parameters())
    channels = [int(width * 3 / 8) for width in dense.channels]
    assert more == sum(depth * width * (kernel**2 - cells**2) for depth, width, kernel, cells in zip(
        (3, 3, 9, 3), channels, (51, 49, 47, 13), (13, 13, 13, 9)))
