# Without sparsity, at ConvNeXt's widths.
_base_ = './replk-51-tiny_32xb128-120e_in1k.py'

model = dict(backbone=dict(width_factor=1.0), head=dict(in_channels=768))
custom_hooks = _base_.custom_hooks[:1]
