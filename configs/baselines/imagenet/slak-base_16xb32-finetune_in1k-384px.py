_base_ = '../../imagenet/pelk-base_16xb32-finetune_in1k-384px.py'

model = dict(backbone=dict(type='pelk_mm.SLaK'))
load_from = 'work_dirs/slak-base_32xb128_in1k/epoch_300.pth'
