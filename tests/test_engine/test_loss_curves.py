"""Training in bf16 mixed precision against fp32, on the digits."""

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

from pelk_mm.datasets import make_digit_scenes
from pelk_mm.engine.launch import load_config

DIGITS, BATCH, STEPS, WINDOW = 100, 32, 60, 10
BAND = 0.02
CHANNELS = (24, 48, 96, 128)


@pytest.fixture(scope='module')
def learn(root, tmp_path_factory):
    """Train a small PeLK; gives the mean loss of each ten steps."""
    data = tmp_path_factory.mktemp('data') / 'digit_scenes'
    make_digit_scenes(data, num_cls_train=DIGITS, num_cls_val=10, num_scenes_train=1, num_scenes_val=1)
    cfg = load_config(
        str(root / 'configs/digits/pelk-atto_1xb64_digits.py'), {
            # All channels go through the peripheral convolution, and through no other beside it.
            'model.backbone': dict(
                depths=(1, 1, 2, 1), channels=CHANNELS, width_factor=1.0, conv_ratio=1, small_kernel=None),
            'model.head.in_channels': CHANNELS[-1],
            # Without smoothed labels, whose entropy no training takes away.
            'model.head.loss': dict(_delete_=True, type='CrossEntropyLoss'),
            'train_dataloader.dataset.data_root': str(data)
        })
    # The same pixels each time: no augmentation.
    cfg.train_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    samples = [dataset[index] for index in range(DIGITS)]

    def learn(seed, amp=False):
        init_default_scope('mmpretrain')
        torch.manual_seed(seed)
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05)))
        order = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(STEPS):
            chosen = torch.randint(DIGITS, (BATCH, ), generator=order).tolist()
            batch = model.data_preprocessor(pseudo_collate([samples[index] for index in chosen]), True)
            with torch.autocast('cpu', torch.bfloat16, enabled=amp):
                loss, _ = model.parse_losses(model(**batch, mode='loss'))
            wrapper.update_params(loss)
            losses.append(loss.item())
        return torch.tensor(losses).view(-1, WINDOW).mean(1)

    return learn


def test_bf16_learns_as_fp32_does(learn):
    """Within a band that is narrower than what another seed does, and than what a broken cast does.

    Greatest difference of the means of ten steps, measured on one core of an Intel Xeon with AMX: bf16 against fp32
    0.0034, 0.0033 and 0.0012 with the seeds 0, 1 and 2, and 0.0057 with seed 0 and the backend ``box_sums``; fp32 with
    the seeds 1 and 2 against seed 0, 0.076 and 0.118. A cast in ``peripheral_conv2d`` that loses the gradient of theta
    gives 0.039, one that loses that of x 0.55. What merely rounds more is too little to show here: 0.0027 with
    sums in bf16 in ``box_sums``, and 0.011 with weights kept in bf16.
    """
    fp32, bf16 = learn(0), learn(0, amp=True)
    assert fp32[-1] < fp32[0] / 3
    assert bf16[-1] < bf16[0] / 3
    assert 0 < (bf16 - fp32).abs().max() < BAND
