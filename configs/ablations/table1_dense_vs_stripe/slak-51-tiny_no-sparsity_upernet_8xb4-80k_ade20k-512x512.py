# Without sparsity, at ConvNeXt's widths.
_base_ = './slak-51-tiny_upernet_8xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(width_factor=1.0),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
