_base_ = './pelk-base_16xb32-finetune_in1k-384px.py'

model = dict(backbone=dict(arch='base-101'))
load_from = 'work_dirs/pelk-base-101_32xb128_in1k/epoch_300.pth'
