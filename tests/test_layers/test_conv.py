"""Gradients with the strides of their weights, which DDP compares."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.layers import Conv2d
from pelk_mm.nets import PeLK, SLaK
from pelk_mm.testing.processes import run_ranks

ARCH = dict(depths=(1, 1), channels=(8, 16), kernel_sizes=(9, 7))


@pytest.mark.parametrize('backend', ['native', 'box_sums', 'reference'])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('cls, options', [
    (PeLK, {}), (SLaK, {}), (PeLK, dict(in_channels=1)), (PeLK, dict(grids='dense')), (PeLK, dict(small_kernel=1)),
    (PeLK, dict(arch=dict(depths=(1, ), channels=(1, ), kernel_sizes=(5, )), width_factor=1.0, ffn_ratio=1.0)),
    (PeLK, dict(branch_norm_layer=None, with_cp=True))
], ids=str)
def test_every_gradient(cls, options, memory_format, backend, monkeypatch):
    monkeypatch.setenv('PELK_MM_BACKEND', backend)
    options = dict(dict(arch=ARCH), **options)
    # The embedding takes theta a second time, and a sum of gradients has usual strides.
    channels_last = memory_format is torch.channels_last and cls is PeLK
    net = cls(**options, **dict(position_embedding=False) if channels_last else {}).to(memory_format=memory_format)
    x = torch.rand(2, options.get('in_channels', 3), 32, 32).to(memory_format=memory_format)
    net(x)[0].square().sum().backward()
    assert {name: p.grad.stride() for name, p in net.named_parameters()} == \
        {name: p.stride() for name, p in net.named_parameters()}


@pytest.mark.parametrize('groups, channels, kernel', [(4, 4, 5), (1, 4, 3), (1, 1, 3), (2, 4, 1)])
def test_as_the_convolution_of_pytorch(groups, channels, kernel):
    conv = Conv2d(channels, 4, kernel, padding=kernel // 2, groups=groups)
    assert isinstance(conv, nn.Conv2d)
    x = torch.rand(2, channels, 6, 7).to(memory_format=torch.channels_last)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, 1, kernel // 2, 1, groups), rtol=0, atol=0)
    assert list(conv.state_dict()) == ['weight', 'bias']


DDP = '''
import gc, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pelk_mm.nets import PeLK
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
for out_indices in (0, 1):
    net = PeLK(dict(depths=(1, 1), channels=(8, 16), kernel_sizes=(9, 7)), out_indices=out_indices)
    net = DistributedDataParallel(net)
    for _ in range(2):
        sum(out.square().sum() for out in net(torch.rand(2, 3, 32, 32))).backward()
    print(len(list(net.parameters())) - sum(p.grad is None for p in net.parameters()))
# The wrapper holds the group, and gloo's threads must not outlive it.
del net
gc.collect()
dist.destroy_process_group()
'''


def test_ddp_has_nothing_to_warn_of_and_waits_for_no_unused_stage(tmp_path):
    script = tmp_path / 'ddp.py'
    script.write_text(DDP)
    for log in run_ranks(script, [(rank, tmp_path / 'store') for rank in range(2)], tmp_path, timeout=300,
                         modules=('pelk_mm.nets', 'torch._dynamo')):
        assert 'Grad strides' not in log
        trained = [line for line in log.splitlines() if line.isdigit()]
        assert [int(count) for count in trained] == [
            len(list(PeLK(ARCH, out_indices=index).parameters())) for index in (0, 1)]
