# ConvNeXt-T, grown: kernels as large as PeLK's around 7 x 7, which tools/model_converters/grow_convnext.py fills.
_base_ = './pelk_classifier.py'

model = dict(
    backbone=dict(
        center=7,
        conv_ratio=1.0,
        width_factor=1.0,
        small_kernel=None,
        branch_norm_cfg=None,
        position_embedding=False),
    head=dict(in_channels=768))
