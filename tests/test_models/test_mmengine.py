"""The registered classes as modules of MMEngine: initialisation, copies, subclasses."""

import copy
import pickle

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from pelk_mm import nets
from pelk_mm.models import LargeKernelNet, PeLK, SLaK

SMALL = dict(arch=dict(depths=(1, 2), channels=(4, 6), kernel_sizes=(9, 7)))
CLASSES = pytest.mark.parametrize('cls', [PeLK, SLaK])


@CLASSES
def test_kinds(cls):
    net = cls(**SMALL)
    for kind in (BaseModule, LargeKernelNet, nets.LargeKernelNet, getattr(nets, cls.__name__)):
        assert isinstance(net, kind)
    assert cls.__init__.__qualname__ == f'{cls.__name__}.__init__'
    assert not isinstance(getattr(nets, cls.__name__)(**SMALL), BaseModule)


@CLASSES
def test_initialisation_by_config(cls):
    """Each parameter that the config names, and no other; what MMEngine keeps meanwhile is gone afterwards."""
    init_cfg = [dict(type='Constant', layer='Linear', val=0.25, bias=3.0)]
    net = cls(**SMALL, init_cfg=init_cfg)
    init_cfg[0]['val'] = 7.0
    assert "'val': 0.25" in repr(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = nn.ModuleDict(dict(backbone=net))
    holder = BaseModule()
    holder.model = model['backbone']
    holder.init_weights()
    assert net.is_init
    for name, value in net.state_dict().items():
        expected = before[name] if 'pointwise' not in name else torch.full_like(
            value, 3.0 if name.endswith('bias') else 0.25)
        torch.testing.assert_close(value, expected, rtol=0, atol=0, msg=name)
    assert not [module for module in holder.modules() if hasattr(module, '_params_init_info')]


@CLASSES
def test_pretrained_weights_come_last(cls, tmp_path):
    saved = cls(**SMALL)
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in saved.state_dict().items()}),
               tmp_path / 'saved.pth')
    net = cls(**SMALL, init_cfg=[
        dict(type='Pretrained', checkpoint=str(tmp_path / 'saved.pth'), prefix='backbone.'),
        dict(type='Constant', layer='Linear', val=0.25)])
    net.init_weights()
    for name, value in net.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name


@CLASSES
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=['copy', 'pickle'])
def test_copies_are_independent(cls, copied):
    options = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'), branch_norm_cfg=dict(type='SyncBN', eps=1e-3))
    net = cls(**SMALL, **options, init_cfg=dict(type='Constant', layer='Linear', val=0.25)).eval()
    twin, x = copied(net), torch.rand(2, 3, 32, 32)
    before = net(x)[0]
    torch.testing.assert_close(twin(x)[0], before, rtol=0, atol=0)
    assert (twin.init_cfg, twin.branch_norm_cfg) == (net.init_cfg, options['branch_norm_cfg'])
    twin.init_cfg['val'], twin.branch_norm_cfg['eps'] = 1.0, 1.0
    with torch.no_grad():
        for value in twin.state_dict().values():
            value.zero_()
    torch.testing.assert_close(net(x)[0], before, rtol=0, atol=0)
    assert (net.init_cfg['val'], net.branch_norm_cfg['eps']) == (0.25, 1e-3)


@CLASSES
def test_configs_are_not_edited(cls):
    cfg = ConfigDict(type=f'pelk_mm.{cls.__name__}', **SMALL, norm_cfg=dict(type='BN', requires_grad=False),
                     branch_norm_cfg=dict(type='BN', requires_grad=False), act_cfg=dict(type='ReLU', inplace=False))
    given = copy.deepcopy(cfg)
    for _ in range(2):
        net = MODELS.build(cfg)
    assert cfg == given
    frozen = [parameter.requires_grad for module in net.modules() if isinstance(module, nn.BatchNorm2d)
              for parameter in module.parameters()]
    assert len(frozen) == 2 * (6 + 3 * (2 if cls is PeLK else 3))
    assert not any(frozen)


@pytest.mark.parametrize('branch_norm_cfg', [None, dict(type='BN')])
def test_a_mixer_of_ones_own(branch_norm_cfg):
    """Written for the skeleton of 0.1.0."""

    class Plain(LargeKernelNet):

        def build_mixer(self, stage, channels):
            conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=self.branch_norm_cfg is None)
            return conv if self.branch_norm_cfg is None else nn.Sequential(conv, self.build_branch_norm(channels))

    net = Plain((1, 1), (4, 8), branch_norm_cfg=branch_norm_cfg, act_cfg=dict(type='ReLU'), out_indices=(0, 1))
    assert [tuple(out.shape) for out in net(torch.rand(2, 3, 16, 16))] == [(2, 4), (2, 8)]
    assert sum(type(module) is nn.BatchNorm2d for module in net.modules()) == (2 if branch_norm_cfg else 0)
    assert set(net.get_sparse_parameters()) >= {'stages.1.blocks.0.pointwise_conv1.weight'}
    with pytest.raises(TypeError, match='LargeKernelNet must define build_mixer'):
        LargeKernelNet((1, ), (4, ))
