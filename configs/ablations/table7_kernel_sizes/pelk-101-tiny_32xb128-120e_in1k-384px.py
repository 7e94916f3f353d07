_base_ = './pelk-51-tiny_32xb128-120e_in1k-384px.py'

model = dict(backbone=dict(arch='tiny-101'))
