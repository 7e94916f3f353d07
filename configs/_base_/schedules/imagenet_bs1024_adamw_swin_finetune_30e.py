# Swin's own, to go on from 224 at 384 px: its rates are for 512 images, 2e-5, and 0.01 of that at the end.
_base_ = './imagenet_bs1024_adamw_swin_300e.py'

optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, begin=5, end=30, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
