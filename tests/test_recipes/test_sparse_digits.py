"""The configs for the built-in data: train sparse, then fine-tune at a larger size, with every zero where it was."""

from typing import ClassVar

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pelk_mm.datasets import make_digit_scenes
from pelk_mm.engine.launch import configure_training, load_config, run


@HOOKS.register_module()
class SizesSeen(Hook):
    sizes: ClassVar = set()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.sizes.add(tuple(data_batch['inputs'][0].shape[-2:]))


def train(config, data, work_dir, epochs, **options):
    """Return the last checkpoint and the sizes of the images."""
    SizesSeen.sizes.clear()
    options |= {f'{part}_dataloader.{key}': value for part in ('train', 'val') for key, value in (
        ('batch_size', 10), ('num_workers', 0), ('persistent_workers', False), ('dataset.data_root', str(data)))}
    cfg = load_config(str(config), {'train_cfg.max_epochs': epochs, **options}, str(work_dir))
    cfg.custom_hooks.append(dict(type='mmengine.SizesSeen'))
    cfg.log_level = 'ERROR'
    configure_training(cfg)
    run(cfg, 'train')
    return torch.load(work_dir / f'epoch_{epochs}.pth', weights_only=False), set(SizesSeen.sizes)


def density(weights):
    return sum(int(value.count_nonzero()) for value in weights) / sum(value.numel() for value in weights)


def weights_of(content):
    """Weights of 2 and 4 dimensions, without the embeddings of positions."""
    return {name: value for name, value in content['state_dict'].items() if value.ndim in (2, 4)}


def test_fine_tuning_at_a_larger_size_keeps_every_zero(root, tmp_path):
    """Eight steps with two updates of the masks, then an epoch at 96 pixels."""
    digits, data = root / 'configs/digits', tmp_path / 'data'
    make_digit_scenes(data, num_cls_train=40, num_cls_val=10, num_scenes_train=1, num_scenes_val=1)
    before, sizes = train(digits / 'pelk-atto_sparse_1xb64_digits.py', data, tmp_path / 'sparse', 2,
                          **{'custom_hooks.0.update_interval': 3})
    assert sizes == {(64, 64)}
    after, sizes = train(digits / 'pelk-atto_sparse-finetune_1xb64-5e_digits-96px.py', data, tmp_path / 'tuned', 1,
                         load_from=str(tmp_path / 'sparse/epoch_2.pth'))
    assert sizes == {(96, 96)}
    old, new = weights_of(before), weights_of(after)
    assert density(old.values()) == pytest.approx(0.6, abs=0.01)
    assert density(new.values()) == density(old.values())
    changed = 0
    for name, value in new.items():
        assert torch.equal(value != 0, old[name] != 0), name
        changed += int((value != old[name]).sum())
    # Nearly all live weights are trained.
    assert changed > 0.99 * sum(int(value.count_nonzero()) for value in old.values())
    assert after['dynamic_sparsity']['masks'].keys() == before['dynamic_sparsity']['masks'].keys()
