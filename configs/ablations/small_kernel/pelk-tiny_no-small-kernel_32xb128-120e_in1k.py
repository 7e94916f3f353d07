_base_ = '../../imagenet/pelk-tiny_32xb128-120e_in1k.py'

model = dict(backbone=dict(small_kernel=None))
