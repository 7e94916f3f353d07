# Dense 51x51 kernels in every channel.
_base_ = '../../ade20k/pelk-tiny_upernet_8xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(grids='dense', conv_ratio=1, position_embedding=False))
