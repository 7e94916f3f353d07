_base_ = [
    '../_base_/models/pelk_classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/imagenet_bs4096_adamw_300e_sparse.py',
    '../_base_/runtimes/mmpretrain.py',
]
model = dict(data_preprocessor=_base_.data_preprocessor, backbone=dict(arch='small', drop_path_rate=0.4))
train_dataloader = dict(batch_size=128, drop_last=True)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
