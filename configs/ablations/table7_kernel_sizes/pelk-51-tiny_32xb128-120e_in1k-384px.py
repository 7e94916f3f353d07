# PeLK-T for 120 epochs at 384 px.
_base_ = '../../imagenet/pelk-base_32xb128_in1k-384px-scratch.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.1), head=dict(in_channels=998))
train_cfg = dict(max_epochs=120)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=20, end=120, convert_to_iter_based=True),
]
custom_hooks = [
    _base_.custom_hooks[0],
    dict(type='pelk_mm.DynamicSparsityHook', sparsity=0.4, update_interval=2000, prune_rate=0.5),
]
