_base_ = './pelk-33-tiny_all-ones_32xb128-120e_in1k.py'

model = dict(backbone=dict(grids=[[1, 1, 2, 4, 8, 1]] * 4))
