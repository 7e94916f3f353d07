_base_ = '../../coco/cascade-mask-rcnn_pelk-tiny_dense_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'
custom_imports = dict(imports=['mmpretrain.models', 'pelk_mm.engine'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch='tiny',
        drop_path_rate=0.2,
        pad_small_map=True,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint=None)))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)}))
