_base_ = '../../imagenet/pelk-small_dense_32xb128_in1k.py'

model = dict(backbone=dict(_delete_=True, type='ConvNeXt', arch='small', drop_path_rate=0.4))
