# Without sparsity, at ConvNeXt's widths.
_base_ = './cascade-mask-rcnn_pelk-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'

model = dict(backbone=dict(width_factor=1.0), neck=dict(in_channels=[96, 192, 384, 768]))
custom_hooks = []
