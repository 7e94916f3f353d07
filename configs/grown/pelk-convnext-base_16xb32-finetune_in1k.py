_base_ = './pelk-convnext-tiny_16xb32-finetune_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.2), head=dict(in_channels=1024))
load_from = 'checkpoints/pelk-convnext-base.pth'
