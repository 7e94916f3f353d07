_base_ = './pelk-base_32xb128_in1k.py'

model = dict(backbone=dict(arch='base-101'))
