_base_ = './pelk-atto_upernet_1xb8-1600it_digits-128x128.py'

model = dict(
    # The maps of a crop have 32, 16, 8 and 4 pixels a side.
    backbone=dict(
        kernel_sizes=[31, 15, 7, 7],
        center=7,
        conv_ratio=1.0,
        width_factor=1.0,
        small_kernel=None,
        branch_norm_cfg=None,
        position_embedding=False,
        init_cfg=dict(checkpoint='checkpoints/pelk-convnext-atto.pth')),
    decode_head=dict(in_channels=[24, 48, 96, 192]),
    auxiliary_head=dict(in_channels=96))
