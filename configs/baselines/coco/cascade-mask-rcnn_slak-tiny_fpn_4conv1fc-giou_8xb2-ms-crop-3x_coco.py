_base_ = '../../coco/cascade-mask-rcnn_pelk-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'

model = dict(backbone=dict(type='pelk_mm.SLaK'))
