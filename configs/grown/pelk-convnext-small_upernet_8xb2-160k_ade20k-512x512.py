_base_ = './pelk-convnext-tiny_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='checkpoints/pelk-convnext-small.pth')))
