_base_ = [
    '../_base_/models/upernet_pelk-convnext.py',
    'mmseg::_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k.py',
    '../_base_/runtimes/mmseg.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(init_cfg=dict(checkpoint='checkpoints/pelk-convnext-tiny.pth')),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
train_dataloader = dict(batch_size=2)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='mIoU'))
