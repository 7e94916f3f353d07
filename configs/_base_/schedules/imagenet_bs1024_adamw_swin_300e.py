# Swin's own, resumed exactly.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'
custom_imports = dict(imports=['pelk_mm.engine'], allow_failed_imports=False)

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
train_cfg = dict(_delete_=True, type='pelk_mm.ResumableEpochBasedTrainLoop', max_epochs=300, val_interval=1)
