"""Lengths of an epoch and a warm-up, and the weights that decay, as the sources have them."""

import copy

import pytest
from mmengine.runner import Runner
from torch.utils.data import Dataset

from pelk_mm.engine.launch import load_config

from ..helpers.config_tree import ROOT, decays_of, load

IMAGENET = ROOT / 'configs/imagenet'
BASELINES = ROOT / 'configs/baselines/imagenet'
COCO = 'cascade-mask-rcnn_{}_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'
# A batch's images, and the full batches of 1,281,167 images.
STEPS = {4096: 312, 2048: 625, 1024: 1251, 512: 2502}
# mmpretrain's own recipes.
OWN = ('deit', 't2t', 'vit')


class Blank(Dataset):
    """As many samples as ImageNet has."""

    def __len__(self):
        return 1281167

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize(
    'path', [path for folder in (IMAGENET, BASELINES, *(ROOT / 'configs/ablations').glob('*'))
             for path in folder.glob('*_in1k*.py') if not path.name.startswith(OWN)], ids=lambda path: path.stem)
def test_steps_of_an_epoch_on_imagenet(path, monkeypatch):
    """Full batches only, as the sources' ``drop_last``; no process has another number of them."""
    loader = copy.deepcopy(load(path).train_dataloader)
    size = load(path).auto_scale_lr.base_batch_size
    gpus = size // loader.batch_size
    assert f'_{gpus}xb{loader.batch_size}' in path.stem
    loader.dataset, loader.num_workers, loader.persistent_workers = dict(type=Blank), 0, False
    for rank in (0, gpus - 1):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, gpus))
        assert len(Runner.build_dataloader(copy.deepcopy(loader), seed=0)) == STEPS[size]


def test_the_last_batch_can_be_kept():
    cfg = load_config(str(IMAGENET / 'pelk-tiny_32xb128_in1k.py'), {'train_dataloader.drop_last': False})
    loader = dict(cfg.train_dataloader, dataset=dict(type=Blank), num_workers=0, persistent_workers=False)
    assert len(Runner.build_dataloader(loader, seed=0)) == 1281167 // 128 + 1


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('*-3x_coco.py')), ids=lambda path: path.stem)
def test_warmup_on_coco(path):
    """MMDetection 2's schedule_1x, which ConvNeXt, SLaK and Swin kept: 500 iterations from 0.001 of the rate."""
    warmup, fall = load(path).param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.by_epoch) == ('LinearLR', 1e-3, False)
    assert (warmup.begin, warmup.end) == (0, 500)
    assert (fall.type, fall.milestones, fall.gamma, fall.end) == ('MultiStepLR', [27, 33], 0.1, 36)


@pytest.mark.parametrize('path', [
    'imagenet/pelk-tiny_32xb128_in1k.py', 'imagenet/pelk-base_16xb32-finetune_in1k-384px.py',
    'imagenet/pelk-base_dense_32xb128-fsdp_in1k.py', 'ade20k/pelk-tiny_upernet_8xb2-160k_ade20k-512x512.py',
    'coco/' + COCO.format('pelk-tiny'), 'digits/pelk-atto_1xb64_digits.py',
    'digits/pelk-atto_upernet_1xb8-1600it_digits-128x128.py', 'digits/cascade-mask-rcnn_pelk-atto_fpn_1xb4-4e_digits.py'
])
def test_decay_of_the_embedding_can_be_switched_on(path):
    """SLaK's rule: all decay but biases and what has one dimension. One option, and nothing else changes."""
    option = {'optim_wrapper.paramwise_cfg.custom_keys.position_embedding.decay_mult': 1.0}
    ours, slak = (load_config(str(ROOT / 'configs' / path), options) for options in ({}, option))
    full = ours.optim_wrapper.optimizer.weight_decay
    ours, slak = decays_of(ours), decays_of(slak)
    embeddings = [name for name in ours if 'position_embedding' in name]
    assert len(embeddings) == 4
    assert {ours[name] for name in embeddings} == {0.0}
    assert {slak[name] for name in embeddings} == {full}
    assert {name: value for name, value in ours.items() if name not in embeddings
            } == {name: value for name, value in slak.items() if name not in embeddings}
