_base_ = './cascade-mask-rcnn_pelk-atto_fpn_1xb4-4e_digits.py'

model = dict(
    # The maps of 128 pixels have 32, 16, 8 and 4 a side.
    backbone=dict(
        kernel_sizes=[31, 15, 7, 7],
        center=7,
        conv_ratio=1.0,
        width_factor=1.0,
        small_kernel=None,
        branch_norm_cfg=None,
        position_embedding=False,
        init_cfg=dict(checkpoint='checkpoints/pelk-convnext-atto.pth')),
    neck=dict(in_channels=[24, 48, 96, 192]))
