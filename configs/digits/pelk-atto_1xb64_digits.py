_base_ = [
    '../_base_/models/pelk_classifier.py',
    '../_base_/datasets/digits_cls.py',
    '../_base_/schedules/digits_adamw_6e.py',
    'mmpretrain::_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(arch='atto', drop_path_rate=0.0, layer_scale_init_value=1.0),
    head=dict(in_channels=249, num_classes=10),
    train_cfg=None)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
