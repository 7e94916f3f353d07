_base_ = '../../ade20k/pelk-tiny_dense_upernet_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmpretrain.models', 'pelk_mm.engine'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        gap_before_final_norm=False,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint=None)))
# mmseg's own constructor knows the stages of ConvNeXt.
optim_wrapper = dict(
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.9, decay_type='stage_wise', num_layers=6))
