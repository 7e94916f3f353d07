# 33x33 in every stage, without sparsity (at ConvNeXt's widths) and positional embedding.
_base_ = '../../imagenet/pelk-tiny_32xb128-120e_in1k.py'

model = dict(
    backbone=dict(kernel_sizes=[33] * 4, grids='dense', width_factor=1.0, position_embedding=False),
    head=dict(in_channels=768))
custom_hooks = _base_.custom_hooks[:1]
