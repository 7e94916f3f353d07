# ConvNeXt's and SLaK's: AdamW with layer-wise decay for 36 epochs.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

# Resumes exactly, in the middle of an epoch too.
train_cfg = dict(type='pelk_mm.ResumableEpochBasedTrainLoop', max_epochs=36)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='pelk_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        decay_type='layer_wise',
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(position_embedding=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
