# RepLKNet's own batch, rate and warm-up, and averaged weights.
_base_ = './convnext-base_16xb32-finetune_in1k-384px.py'

model = dict(
    backbone=dict(_delete_=True, type='RepLKNet', arch='31B', drop_path_rate=0.8),
    neck=dict(type='GlobalAveragePooling'),
    # Not made small by its authors.
    head=dict(init_cfg=None))
optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.0025, by_epoch=True, begin=1, end=30, convert_to_iter_based=True),
]
custom_hooks = [
    dict(type='pelk_mm.LoadWeightsHook', weights='raw'),
    dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')
]
auto_scale_lr = dict(base_batch_size=1024)
load_from = 'work_dirs/replknet-31b_32xb64_in1k/epoch_300.pth'
