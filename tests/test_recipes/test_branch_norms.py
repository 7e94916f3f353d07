"""Norms of the branches: which config synchronises them, and that they train and fold in one process.

Their statistics over several processes are tested in test_layers/test_all_reduce_batch_norm.py and, in complete
trainings, in test_engine/test_distributed.py.
"""

import pytest
import torch
from torch import nn

from pelk_mm.analysis import build_model
from pelk_mm.engine.launch import load_config

from ..helpers.config_tree import ROOT, load

IMAGENET = sorted((ROOT / 'configs').rglob('*in1k*.py'))
TINY = dict(
    depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), width_factor=1.0, kernel_sizes=(9, 9, 9, 9), drop_path_rate=0.0)


@pytest.mark.parametrize('path', IMAGENET, ids=lambda path: path.stem)
def test_branches_of_imagenet_models_are_synchronised(path):
    """SLaK's are, and PeLK follows it; RepLKNet's are not, and networks grown from a ConvNeXt have none."""
    cfg = load(path)
    own = cfg.model.backbone.type in ('pelk_mm.PeLK', 'pelk_mm.SLaK') and path.parent.name != 'grown'
    assert cfg.model.backbone.get('branch_norm_cfg', None) == (dict(type='SyncBN') if own else None)
    if cfg.model.backbone.type == 'RepLKNet':
        assert cfg.get('sync_bn') is None
        assert cfg.model.backbone.get('norm_cfg', dict(type='BN'))['type'] == 'BN'


@pytest.mark.parametrize(('config', 'branches'), [
    ('imagenet/pelk-tiny_32xb128_in1k.py', 2), ('baselines/imagenet/slak-tiny_32xb128_in1k.py', 3)])
def test_trains_and_merges_in_one_process(config, branches):
    """Without other processes, on the CPU too, SyncBN is BatchNorm; it folds into the convolutions."""
    torch.manual_seed(0)
    cfg = load_config(str(ROOT / 'configs' / config), {'model.backbone': TINY, 'model.head.in_channels': 8})
    model = build_model(cfg, 'cpu')
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 4 * branches
    x = torch.randn(4, 3, 64, 64)
    model.train().backbone(x)[0].sum().backward()
    assert all(norm.running_mean.any() and norm.weight.grad is not None for norm in norms)
    with torch.no_grad():
        expected = model.eval().backbone(x)[0]
        model.backbone.switch_to_deploy()
        torch.testing.assert_close(model.backbone(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.backbone.modules())
