# As for ADE20K, sized for two CPU cores.
_base_ = './ade20k_bs16_adamw_160k.py'

optim_wrapper = dict(optimizer=dict(lr=3e-3, fused=True), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=1600),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1600, val_interval=800)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=800, max_keep_ckpts=1))
