custom_imports = dict(imports=['pelk_mm.models', 'pelk_mm.engine', 'toy'])
arch = dict(depths=(1, 1), channels=(4, 8), kernel_sizes=([3, 1, 1], [2, 1, 1]))
model = dict(type='Classifier', backbone=dict(type='pelk_mm.PeLK', arch=arch, width_factor=1.0, small_kernel=3))
train_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type='Stripes'), sampler=dict(type='DefaultSampler', shuffle=True))
train_cfg = dict(type='pelk_mm.ResumableEpochBasedTrainLoop', max_epochs=20)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
param_scheduler = dict(type='CosineAnnealingLR', T_max=220, by_epoch=False)
custom_hooks = [
    dict(type='pelk_mm.DynamicSparsityHook', init='erk', sparsity=0.4, update_interval=7),
    # Two processes stop after the very step in which one gets the signal.
    dict(type='pelk_mm.PreemptionHook', interval=1),
]
default_hooks = dict(checkpoint=dict(interval=5, by_epoch=False))
randomness = dict(seed=3)
