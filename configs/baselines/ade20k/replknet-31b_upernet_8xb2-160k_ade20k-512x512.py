_base_ = '../../ade20k/pelk-base_dense_upernet_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmpretrain.models', 'pelk_mm.engine'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.RepLKNet',
        arch='31B',
        drop_path_rate=0.5,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint=None)),
    test_cfg=dict(_delete_=True, mode='whole'))
# RepLKNet trains without layer-wise decay, and with every norm synchronised.
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0))
sync_bn = 'torch'
