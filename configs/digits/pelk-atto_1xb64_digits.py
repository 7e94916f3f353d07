_base_ = [
    '../_base_/models/pelk_classifier.py',
    '../_base_/datasets/digits_cls.py',
    '../_base_/schedules/digits_adamw_20e.py',
    '../_base_/runtimes/mmpretrain.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    # Kernels as large as the maps of the 64 pixel digits, so that every cell is trained there.
    backbone=dict(
        arch='atto',
        kernel_sizes=[31, 15, 7, 5],
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
        branch_norm_cfg=dict(type='BN')),
    head=dict(in_channels=249, num_classes=10),
    train_cfg=None)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
