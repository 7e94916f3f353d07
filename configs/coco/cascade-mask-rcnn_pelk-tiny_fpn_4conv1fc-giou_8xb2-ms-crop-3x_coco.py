_base_ = [
    '../_base_/models/cascade-mask-rcnn_pelk_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/coco_bs16_adamw_3x.py',
    '../_base_/runtimes/mmdet.py',
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='coco/bbox_mAP'))
# The zeros of the pretrained backbone stay zeros.
custom_hooks = [dict(type='pelk_mm.DynamicSparsityHook', init='zeros', include=r'^backbone\.')]
