"""Norms of the branches: which config synchronises them, and that it makes statistics those of all processes.

Run as a script it is one of two processes on the CPU.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from pelk_mm.analysis.model_building import build_model
from pelk_mm.engine.launch import load_config
from pelk_mm.engine.processes import prepare_cpu_processes
from pelk_mm.testing.processes import free_port, run_ranks

ROOT = Path(__file__).resolve().parents[2]
IMAGENET = sorted((ROOT / 'configs').rglob('*in1k*.py'))
TINY = dict(
    depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), width_factor=1.0, kernel_sizes=(9, 9, 9, 9), drop_path_rate=0.0)
CONFIGS = dict(
    pelk='configs/imagenet/pelk-tiny_32xb128_in1k.py', slak='configs/baselines/imagenet/slak-tiny_32xb128_in1k.py')


@pytest.mark.parametrize('path', IMAGENET, ids=lambda path: path.stem)
def test_branches_of_imagenet_models_are_synchronised(path):
    """SLaK's are, and PeLK follows it; RepLKNet's are not, and networks grown from a ConvNeXt have none."""
    cfg = Config.fromfile(path)
    own = cfg.model.backbone.type in ('pelk_mm.PeLK', 'pelk_mm.SLaK') and path.parent.name != 'grown'
    assert cfg.model.backbone.get('branch_norm_cfg', None) == (dict(type='SyncBN') if own else None)
    if cfg.model.backbone.type == 'RepLKNet':
        assert cfg.get('sync_bn') is None
        assert cfg.model.backbone.get('norm_cfg', dict(type='BN'))['type'] == 'BN'


def tiny_config(name, work_dir=None):
    return load_config(
        str(ROOT / CONFIGS[name]), {'model.backbone': TINY, 'model.head.in_channels': 8}, str(work_dir))


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_and_merges_in_one_process(name):
    """Without other processes, on the CPU too, SyncBN is BatchNorm; it folds into the convolutions."""
    torch.manual_seed(0)
    model = build_model(tiny_config(name), 'cpu')
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 4 * (3 if name == 'slak' else 2)
    x = torch.randn(4, 3, 64, 64)
    model.train().backbone(x)[0].sum().backward()
    assert all(norm.running_mean.any() and norm.weight.grad is not None for norm in norms)
    with torch.no_grad():
        expected = model.eval().backbone(x)[0]
        model.backbone.switch_to_deploy()
        torch.testing.assert_close(model.backbone(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.backbone.modules())


def run_one_rank(rank, folder, *ports):
    for name, port in zip(CONFIGS, ports):
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        cfg = tiny_config(name, folder)
        prepare_cpu_processes(cfg, 'pytorch')
        torch.manual_seed(0)
        backbone = build_model(cfg, 'cpu').backbone
        images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        backbone.train()(images[int(rank)::2])
        buffers = {key: value for key, value in backbone.named_buffers() if 'running' in key}
        torch.save(buffers, Path(folder, f'{name}-{rank}.pth'))
        torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """A folder with the statistics that two processes have in the end, ``<name>-<rank>.pth``."""
    folder = tmp_path_factory.mktemp('ranks')
    ports = [free_port() for _ in CONFIGS]
    run_ranks(__file__, [(rank, folder, *ports) for rank in (0, 1)], folder,
              modules=('mmpretrain.models', 'pelk_mm.engine.launch', 'pelk_mm.models'))
    return folder


@pytest.mark.skipif(get_device() != 'cpu', reason='about processes on the CPU')
@pytest.mark.parametrize('name', CONFIGS)
def test_all_processes_validate_with_the_same_statistics(name, ranks):
    first, second = (torch.load(ranks / f'{name}-{rank}.pth', weights_only=True) for rank in (0, 1))
    assert len(first) == 2 * 4 * (3 if name == 'slak' else 2)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    # They are those of one process with all images.
    torch.manual_seed(0)
    backbone = build_model(tiny_config(name), 'cpu').backbone
    backbone.train()(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    for key, value in first.items():
        torch.testing.assert_close(value, backbone.get_buffer(key), rtol=1e-4, atol=1e-5, msg=key)


if __name__ == '__main__':
    run_one_rank(*sys.argv[1:])
