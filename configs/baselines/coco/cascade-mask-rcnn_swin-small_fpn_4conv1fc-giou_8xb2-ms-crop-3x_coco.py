_base_ = './cascade-mask-rcnn_swin-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'

model = dict(backbone=dict(arch='small'))
