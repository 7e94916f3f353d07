_base_ = '../../coco/cascade-mask-rcnn_pelk-base_dense_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'
custom_imports = dict(imports=['mmpretrain.models', 'pelk_mm.engine'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.RepLKNet',
        arch='31B',
        drop_path_rate=0.6,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint=None)))
# RepLKNet trains without layer-wise decay, and with every norm synchronised.
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0))
sync_bn = 'torch'
