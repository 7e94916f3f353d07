# As for COCO, sized for two CPU cores.
_base_ = './coco_bs16_adamw_3x.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=4)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, fused=True), clip_grad=dict(max_norm=10.0), paramwise_cfg=dict(layer_decay_rate=0.8))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=1, end=4, convert_to_iter_based=True),
]
