# Without sparsity, at ConvNeXt's widths.
_base_ = './cascade-mask-rcnn_pelk-base_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'

model = dict(backbone=dict(width_factor=1.0), neck=dict(in_channels=[128, 256, 512, 1024]))
custom_hooks = []
