_base_ = '../../imagenet/pelk-small_32xb128_in1k.py'

model = dict(backbone=dict(type='pelk_mm.SLaK'))
