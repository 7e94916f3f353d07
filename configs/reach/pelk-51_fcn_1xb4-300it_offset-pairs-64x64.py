_base_ = [
    '../_base_/models/fcn_pelk-reach.py',
    '../_base_/datasets/offset_pairs.py',
    '../_base_/schedules/reach_adamw_300it.py',
    '../_base_/runtimes/mmseg.py',
]

model = dict(decode_head=dict(num_classes=2, out_channels=2))
