_base_ = [
    '../_base_/models/fcn_pelk-reach.py',
    '../_base_/datasets/nearest_seed.py',
    '../_base_/schedules/reach_adamw_300it.py',
    '../_base_/runtimes/mmseg.py',
]
