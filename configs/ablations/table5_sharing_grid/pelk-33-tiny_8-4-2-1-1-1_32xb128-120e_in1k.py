_base_ = './pelk-33-tiny_all-ones_32xb128-120e_in1k.py'

model = dict(backbone=dict(grids=[[8, 4, 2, 1, 1, 1]] * 4))
