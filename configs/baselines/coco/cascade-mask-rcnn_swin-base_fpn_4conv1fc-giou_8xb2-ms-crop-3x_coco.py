_base_ = './cascade-mask-rcnn_swin-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.3), neck=dict(in_channels=[128, 256, 512, 1024]))
