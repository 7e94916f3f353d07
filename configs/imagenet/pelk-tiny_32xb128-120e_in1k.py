# The schedule of the paper's ablations.
_base_ = './pelk-tiny_32xb128_in1k.py'

train_cfg = dict(max_epochs=120)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=20, end=120, convert_to_iter_based=True),
]
