# Stripes.
_base_ = '../../ade20k/pelk-tiny_upernet_8xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(type='pelk_mm.SLaK'))
