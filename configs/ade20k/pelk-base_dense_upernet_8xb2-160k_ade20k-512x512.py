# Without sparsity, at ConvNeXt's widths.
_base_ = './pelk-base_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(width_factor=1.0),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
custom_hooks = []
