# RepLKNet's own batch and warm-up.
_base_ = '../../imagenet/pelk-base_32xb128_in1k-384px-scratch.py'

model = dict(
    backbone=dict(_delete_=True, type='RepLKNet', arch='31B', drop_path_rate=0.5),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels=1024))
train_dataloader = dict(batch_size=64)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=10, end=300, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=2048)
custom_hooks = _base_.custom_hooks[:1]
