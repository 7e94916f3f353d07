_base_ = './cascade-mask-rcnn_pelk-convnext-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.7, init_cfg=dict(checkpoint='checkpoints/pelk-convnext-base.pth')),
    neck=dict(in_channels=[128, 256, 512, 1024]))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
