# Goes on from 224 px as ConvNeXt-B does; zeros stay zero.
_base_ = [
    '../_base_/models/pelk_classifier.py',
    '../_base_/datasets/imagenet_bs64_randaug_384.py',
    '../_base_/schedules/imagenet_bs512_adamw_finetune_30e.py',
    '../_base_/runtimes/mmpretrain.py',
]
# Without mixup and cutmix. A head for other classes than the checkpoint's starts small, at 0.001 x 0.02.
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(arch='base', drop_path_rate=0.8),
    head=dict(in_channels=1331, init_cfg=[dict(type='TruncNormal', layer='Linear', std=2e-5)]),
    train_cfg=None)
train_dataloader = dict(batch_size=32, drop_last=True)
custom_hooks = [
    dict(type='pelk_mm.LoadWeightsHook', weights='raw'),
    dict(type='pelk_mm.DynamicSparsityHook', init='zeros')
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
load_from = 'work_dirs/pelk-base_32xb128_in1k/epoch_300.pth'
