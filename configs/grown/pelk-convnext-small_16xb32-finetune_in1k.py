_base_ = './pelk-convnext-tiny_16xb32-finetune_in1k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
load_from = 'checkpoints/pelk-convnext-small.pth'
