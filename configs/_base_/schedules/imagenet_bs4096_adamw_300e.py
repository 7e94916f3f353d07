# SLaK's: AdamW, cosine after 20 epochs of warm-up, averaged weights.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

optim_wrapper = dict(
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(custom_keys=dict(_delete_=True, position_embedding=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
# Resumes exactly, in the middle of an epoch too.
train_cfg = dict(_delete_=True, type='pelk_mm.ResumableEpochBasedTrainLoop', max_epochs=300, val_interval=1)
# Statistics of the norms are averaged, too, and the raw weights are validated after the averaged ones.
custom_hooks = [
    dict(type='EMAHook', momentum=1e-4, update_buffers=True, evaluate_on_origin=True, priority='ABOVE_NORMAL')
]

# base_batch_size = (32 GPUs) x (128 samples per GPU)
auto_scale_lr = dict(base_batch_size=4096)
