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
# The authors' 5.12 million crops, 40k of (64 GPUs) x (2 samples per GPU) at 2e-4. By the linear rule, that of
# --auto-scale-lr, 2e-4 x 32 / 128; warm-up is 1 % of the iterations. No layer-wise decay, every norm synchronised.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    optimizer=dict(lr=5e-5),
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0))
param_scheduler = [dict(_base_.param_scheduler[0], end=1600), dict(_base_.param_scheduler[1], begin=1600)]
auto_scale_lr = dict(base_batch_size=32)
sync_bn = 'torch'
