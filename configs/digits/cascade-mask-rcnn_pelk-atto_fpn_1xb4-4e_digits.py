_base_ = [
    '../_base_/models/cascade-mask-rcnn_pelk-atto_fpn.py',
    '../_base_/datasets/digits_det.py',
    '../_base_/schedules/digits_adamw_4e.py',
    '../_base_/runtimes/mmdet.py',
]
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=1))
