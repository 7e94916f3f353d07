_base_ = [
    '../_base_/models/cascade-mask-rcnn_pelk-convnext_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/coco_bs16_adamw_3x.py',
    '../_base_/runtimes/mmdet.py',
]
model = dict(backbone=dict(init_cfg=dict(checkpoint='checkpoints/pelk-convnext-tiny.pth')))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='coco/bbox_mAP'))
