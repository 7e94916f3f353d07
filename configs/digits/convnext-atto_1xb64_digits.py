# A plain ConvNeXt with 7x7 kernels, from which pelk-convnext-atto grows.
_base_ = './pelk-atto_1xb64_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch=dict(depths=[1, 1, 2, 1], channels=[24, 48, 96, 192]),
        drop_path_rate=0.0,
        layer_scale_init_value=1.0),
    head=dict(in_channels=192))
