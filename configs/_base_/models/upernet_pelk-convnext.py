# With the backbone of pelk-convnext_classifier.py.
_base_ = './upernet_pelk.py'

model = dict(
    backbone=dict(
        center=7,
        conv_ratio=1.0,
        width_factor=1.0,
        small_kernel=None,
        branch_norm_cfg=None,
        position_embedding=False),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
