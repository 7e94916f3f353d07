_base_ = '../../imagenet/pelk-base_32xb128_in1k-384px-scratch.py'

model = dict(
    backbone=dict(_delete_=True, type='ConvNeXt', arch='base', drop_path_rate=0.5), head=dict(in_channels=1024))
custom_hooks = _base_.custom_hooks[:1]
