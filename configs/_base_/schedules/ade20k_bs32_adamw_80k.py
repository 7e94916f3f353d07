# SLaK's released 80k schedule: batch 32, no layer-wise decay, linear to 0 after 800 iterations of warm-up.
_base_ = 'mmseg::_base_/schedules/schedule_80k.py'

# mmseg's SGD is not used.
optimizer = None
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # Biases and layer scale decay. SLaK has no positional embedding: that stays as in our other recipes.
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(position_embedding=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=800),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=800, end=80000),
]
# Resumes exactly.
train_cfg = dict(type='pelk_mm.ResumableIterBasedTrainLoop')

# base_batch_size = (8 GPUs) x (4 samples per GPU); SLaK: (4 GPUs) x (8 samples per GPU)
auto_scale_lr = dict(enable=False, base_batch_size=32)
