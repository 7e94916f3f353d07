_base_ = '../../imagenet/pelk-tiny_32xb128-120e_in1k.py'

model = dict(backbone=dict(conv_ratio=8 / 8))
