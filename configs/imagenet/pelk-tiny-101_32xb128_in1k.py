_base_ = './pelk-tiny_32xb128_in1k.py'

model = dict(backbone=dict(arch='tiny-101'))
