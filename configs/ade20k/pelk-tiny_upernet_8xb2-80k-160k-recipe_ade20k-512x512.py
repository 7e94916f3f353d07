# The 160k recipe cut short, for ablations that follow ConvNeXt; the others follow SLaK's 80k file (8xb4-80k).
_base_ = './pelk-tiny_upernet_8xb2-160k_ade20k-512x512.py'

train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=80000),
]
default_hooks = dict(checkpoint=dict(interval=8000))
