# The schedule of the paper's ablations, as SLaK's authors released theirs. The zeros of a sparse classifier may grow.
# A GPU has mmseg's 4 crops.
_base_ = [
    '../_base_/models/upernet_pelk.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_bs32_adamw_80k.py',
    '../_base_/runtimes/mmseg.py',
]
model = dict(
    backbone=dict(drop_path_rate=0.1),
    data_preprocessor=dict(size=(512, 512)),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='mIoU'))
