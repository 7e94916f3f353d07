_base_ = '../../imagenet/pelk-base_16xb32-finetune_in1k-384px.py'

model = dict(
    backbone=dict(_delete_=True, type='ConvNeXt', arch='base', drop_path_rate=0.8), head=dict(in_channels=1024))
custom_hooks = [dict(type='pelk_mm.LoadWeightsHook', weights='raw')]
load_from = 'work_dirs/convnext-base_32xb128_in1k/epoch_300.pth'
