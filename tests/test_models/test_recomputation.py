"""Activation checkpointing of every kind: outputs, gradients, buffers and random numbers as without it."""

import copy

import pytest
import torch
from mmengine.runner import activation_checkpointing, turn_on_activation_checkpointing
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

from pelk_mm.layers import AllReduceBatchNorm2d, ReparamDepthwiseConv
from pelk_mm.mmengine_patches import checkpoint_without_reentry
from pelk_mm.models import PeLK, SLaK
from pelk_mm.module_names import clean_name
from pelk_mm.nets import LargeKernelNet
from pelk_mm.nets.blocks import LargeKernelBlock, LargeKernelStage

SMALL = dict(arch=dict(depths=(1, 2), channels=(8, 16), kernel_sizes=(9, 7)), layer_scale_init_value=1.0)
BN = dict(type='BN')


def build(cls, **kwargs):
    torch.manual_seed(0)
    return cls(**{**SMALL, **kwargs}).train()


def step(net):
    """Two iterations of accumulation, as BatchNorm's second depends on nothing but its own count."""
    torch.manual_seed(1)
    outs = []
    for seed in range(2):
        x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        features = net(x)
        sum(out.square().sum() for out in features).backward()
        outs.append([out.detach() for out in features])
    # The state of the generator: the recomputation must not advance it.
    return outs, torch.rand(3)


def assert_same(net, twin, exact=True):
    tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=1e-4, atol=1e-7)
    for got, right in zip(step(twin), step(net)):
        torch.testing.assert_close(got, right, rtol=0, atol=0)
    gradients = {clean_name(name): parameter.grad for name, parameter in twin.named_parameters()}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(gradients[name], parameter.grad, **tolerance, msg=name)
    buffers = {clean_name(name): buffer for name, buffer in twin.named_buffers()}
    assert any('num_batches_tracked' in name for name in buffers)
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=0, atol=0, msg=name)
        if 'num_batches_tracked' in name:
            assert buffer == 2, name


@pytest.mark.parametrize('cls', [PeLK, SLaK])
@pytest.mark.parametrize('options', [
    dict(), dict(drop_path_rate=0.5), dict(norm_cfg=BN), dict(branch_norm_cfg=dict(type='BN', momentum=None)),
    dict(branch_norm_cfg=dict(type='SyncBN')), dict(out_indices=(0, 1)),
], ids=str)
def test_with_cp(cls, options):
    assert_same(build(cls, **options), build(cls, **options, with_cp=True))


def test_with_cp_and_norms_over_all_processes():
    nets = [build(PeLK, with_cp=with_cp) for with_cp in (False, True)]
    for net in nets:
        for module in net.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = AllReduceBatchNorm2d
    assert_same(*nets)


def test_norms_in_eval_mode_keep_their_mode_and_statistics():
    nets = [build(PeLK, with_cp=with_cp) for with_cp in (False, True)]
    for net in nets:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().running_var.fill_(2)
        step(net)
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        assert not any(norm.training for norm in norms)
        assert all(bool((norm.running_var == 2).all()) and norm.num_batches_tracked == 0 for norm in norms)
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


@pytest.mark.parametrize('impl', CheckpointImpl)
@pytest.mark.parametrize('kind', [LargeKernelBlock, LargeKernelStage, ReparamDepthwiseConv])
def test_checkpoint_wrapper(kind, impl):
    twin = build(PeLK)
    apply_activation_checkpointing(twin, lambda module: checkpoint_wrapper(module, checkpoint_impl=impl),
                                   lambda module: isinstance(module, kind))
    assert any('_checkpoint_wrapped_module' in name for name, _ in twin.named_parameters())
    # The reentrant kind sums the embedding's gradient in another order.
    assert_same(build(PeLK), twin, exact=impl is CheckpointImpl.NO_REENTRANT)


def test_checkpoint_wrapper_of_the_backbone_and_its_blocks():
    twin = build(PeLK, norm_cfg=BN)
    for stage in twin.stages:
        stage.blocks[0] = checkpoint_wrapper(stage.blocks[0])
    assert_same(build(PeLK, norm_cfg=BN), checkpoint_wrapper(twin))


@pytest.mark.parametrize('modules', ['stages.1', ['stages.0.blocks.0', 'stages.1.blocks.1'],
                                     ['stages.1.blocks.0.mixer.mixer'], ['stages.1', 'stages.1.blocks.0']], ids=str)
def test_activation_checkpointing_of_mmengine(modules):
    twin = build(PeLK, drop_path_rate=0.5)
    turn_on_activation_checkpointing(twin, modules)
    assert_same(build(PeLK, drop_path_rate=0.5), twin)


def test_activation_checkpointing_of_mmengine_reaches_a_backbone_that_gets_images():
    """An image requires no gradient, without which the reentrant kind passes none on."""
    checkpoint_without_reentry()
    twin = build(PeLK, norm_cfg=BN)
    holder = nn.ModuleDict(dict(backbone=twin))
    turn_on_activation_checkpointing(holder, 'backbone')
    assert_same(build(PeLK, norm_cfg=BN), twin)


def test_upstream_still_passes_no_gradients_to_it(monkeypatch):
    checkpoint_without_reentry()
    monkeypatch.setattr(activation_checkpointing, 'checkpoint', activation_checkpointing.checkpoint.func)
    net = build(PeLK, norm_cfg=BN)
    turn_on_activation_checkpointing(nn.ModuleDict(dict(backbone=net)), 'backbone')
    with pytest.warns(UserWarning, match='use_reentrant|None of the inputs'):
        outputs = net(torch.rand(2, 3, 64, 64))
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_checkpoint_by_hand(use_reentrant):
    net, twin = build(PeLK), build(PeLK)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = twin

        def forward(self, x):
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=use_reentrant)

    for got, right in zip(step(Outer()), step(net)):
        torch.testing.assert_close(got, right, rtol=0, atol=0)
    for a, b in zip(twin.state_dict().values(), net.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 11),
    reason='what PyTorch 2.8 compiles counts twice by itself; 2.11 does not')
def test_compiled():
    torch._dynamo.reset()
    net, twin = build(PeLK), build(PeLK, with_cp=True)
    compiled = torch.compile(twin, backend='aot_eager')
    for got, right in zip(step(compiled), step(net)):
        torch.testing.assert_close(got, right)
    for (name, a), b in zip(net.named_buffers(), twin.buffers()):
        torch.testing.assert_close(b, a, msg=name)


def test_copies_stay_independent():
    net = build(PeLK, with_cp=True)
    step(net)
    other = copy.deepcopy(net)
    step(other)
    counts = [next(buffer for name, buffer in each.named_buffers() if 'num_batches' in name) for each in (net, other)]
    assert [int(count) for count in counts] == [2, 4]
    assert isinstance(other, LargeKernelNet)
