# Dense 51x51 kernels in every channel.
_base_ = '../../imagenet/pelk-tiny_32xb128-120e_in1k.py'

model = dict(backbone=dict(grids='dense', conv_ratio=1, position_embedding=False))
