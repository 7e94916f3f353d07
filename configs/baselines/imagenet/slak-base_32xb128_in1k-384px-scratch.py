_base_ = '../../imagenet/pelk-base_32xb128_in1k-384px-scratch.py'

model = dict(backbone=dict(type='pelk_mm.SLaK'))
