# By ConvNeXt-B's recipe at 224 px, from ImageNet-22K; drop paths of T and S are ours.
_base_ = [
    '../_base_/models/pelk-convnext_classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/imagenet_bs512_adamw_finetune_30e.py',
    '../_base_/runtimes/mmpretrain.py',
]
# Without mixup and cutmix. A head for other classes than the checkpoint's starts small, at 0.001 x 0.02.
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    head=dict(init_cfg=[dict(type='TruncNormal', layer='Linear', std=2e-5)]),
    train_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
train_dataloader = dict(batch_size=32, drop_last=True)
custom_hooks = [dict(type='pelk_mm.LoadWeightsHook', weights='raw')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
load_from = 'checkpoints/pelk-convnext-tiny.pth'
