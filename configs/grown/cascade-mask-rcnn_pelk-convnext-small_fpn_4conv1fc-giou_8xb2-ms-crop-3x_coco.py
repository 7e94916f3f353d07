_base_ = './cascade-mask-rcnn_pelk-convnext-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'

model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.6, init_cfg=dict(checkpoint='checkpoints/pelk-convnext-small.pth')))
