"""Stages that nobody asked for: not built, not run, not counted, and no obstacle to checkpoints."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_state_dict

from pelk_mm.analysis import count_complexity
from pelk_mm.models import PeLK, SLaK

ARCH = dict(depths=(1, 2, 4, 1), channels=(4, 8, 8, 16), kernel_sizes=(9, 9, 7, 7))


@pytest.mark.parametrize('cls', [PeLK, SLaK])
@pytest.mark.parametrize('out_indices, built', [((0, ), 1), ((1, ), 2), ((0, 2), 3), (-2, 3), ((1, -1), 4), (3, 4)])
def test_only_stages_up_to_the_last_one_returned_are_built(cls, out_indices, built):
    net = cls(ARCH, out_indices=out_indices)
    assert len(net.stages) == len(net.downsample_layers) == built
    sum(out.square().mul(torch.rand(out.shape)).sum() for out in net(torch.rand(2, 3, 64, 64))).backward()
    unused = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert unused == [], 'DDP would wait for these'
    net.eval().switch_to_deploy()
    assert len(net(torch.rand(1, 3, 32, 32))) == len(net.out_indices)


@pytest.mark.parametrize('cls', [PeLK, SLaK])
@pytest.mark.parametrize('out_indices', [(0, ), (2, ), (0, 1), (1, 3), (3, )], ids=str)
def test_state_dicts_of_full_nets_load(cls, out_indices):
    """Strictly, by PyTorch and by MMEngine, and the features are those of the full net."""
    full = cls(ARCH, out_indices=(0, 1, 2, 3), layer_scale_init_value=1.0).eval()
    saved = full.state_dict()
    before = list(saved)
    x = torch.rand(2, 3, 64, 64)
    features = full(x)
    for load in (lambda net: net.load_state_dict(saved), lambda net: load_state_dict(net, saved, strict=True),
                 lambda net: torch.nn.ModuleDict(dict(backbone=net)).load_state_dict(
                     {f'backbone.{name}': value for name, value in saved.items()})):
        net = cls(ARCH, out_indices=out_indices, layer_scale_init_value=1.0).eval()
        load(net)
        for index, out in zip(out_indices, net(x), strict=True):
            torch.testing.assert_close(out, features[index], rtol=0, atol=0)
    assert list(saved) == before, "the caller's state dict was edited"


def test_other_names_are_still_refused():
    net = PeLK(ARCH, out_indices=(1, ))
    others = ('stages.4.blocks.0.gamma', 'norm4.weight', 'head.weight', 'stages.0.blocks.7.gamma', 'stages_2.weight')
    for name in others:
        with pytest.raises(RuntimeError, match=f'Unexpected key.*{name}'):
            net.load_state_dict({**net.state_dict(), name: torch.zeros(1)})


def test_depths_and_drop_path_stay_those_of_the_full_net():
    full, cut = (PeLK(ARCH, out_indices=out_indices, drop_path_rate=0.7) for out_indices in ((0, 1, 2, 3), (1, )))
    for stage_wise in (False, True):
        for name, _ in cut.named_parameters():
            assert cut.get_layer_depth(name, stage_wise=stage_wise) == full.get_layer_depth(name, stage_wise=stage_wise)
    rates = [[getattr(block.drop_path, 'drop_prob', 0) for stage in net.stages for block in stage.blocks]
             for net in (full, cut)]
    assert len(rates[1]) == 3
    assert rates[1] == pytest.approx([0, 0.1, 0.2])
    assert rates[0][:3] == rates[1]


def test_frozen_stages_may_be_more_than_are_built():
    net = PeLK(ARCH, out_indices=(0, ), frozen_stages=3)
    assert not any(parameter.requires_grad for parameter in net.stages.parameters())


def test_counts_grow_with_the_last_stage():
    costs = [count_complexity(PeLK(ARCH, out_indices=index), (64, 64)).costs['backbone'] for index in range(4)]
    macs = [sum(cost.macs for cost in parts.values()) for parts in costs]
    stored = [sum(cost.params_stored for cost in parts.values()) for parts in costs]
    assert macs == sorted(set(macs))
    assert stored == sorted(set(stored))
    # The stem makes 16 x 16 pixels of 5 channels, and each pixel of the block 20 of 5, and 5 of 20.
    assert costs[0]['downsampling'].macs == 256 * 5 * 3 * 16
    assert costs[0]['pointwise'].macs == 256 * 2 * 5 * 20


def test_pretrained_backbone_does_not_complain_of_stages_left_out(tmp_path, caplog):
    from pelk_mm.checkpoints.pretrained import PretrainedBackbone
    full = PeLK(ARCH, out_indices=(0, 1, 2, 3))
    path = tmp_path / 'full.pth'
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in full.state_dict().items()}), path)
    net = PeLK(ARCH, out_indices=(0, 1))
    logger = MMLogger.get_instance('test_out_indices', logger_name='test_out_indices')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        PretrainedBackbone(str(path))(net)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    left_out = len(full.state_dict()) - len(net.state_dict())
    assert f'{left_out} keys are of stages and norms that out_indices leaves out' in caplog.text
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, full.state_dict()[name], rtol=0, atol=0)
