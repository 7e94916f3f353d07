_base_ = [
    'mmpretrain::_base_/models/swin_transformer/base_224.py',
    '../../_base_/datasets/imagenet_bs64_randaug_384.py',
    '../../_base_/schedules/imagenet_bs1024_adamw_swin_300e.py',
    '../../_base_/runtimes/mmpretrain.py',
]
model = dict(backbone=dict(img_size=384, stage_cfgs=dict(block_cfgs=dict(window_size=12))))
train_dataloader = dict(drop_last=True)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
