_base_ = './pelk-base_32xb128_in1k-384px-scratch.py'

model = dict(backbone=dict(arch='base-101'))
