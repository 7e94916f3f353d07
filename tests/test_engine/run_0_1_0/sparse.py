arch = dict(
    _delete_=True, channels=(
        4,
        6,
    ), depths=(
        1,
        1,
    ), kernel_sizes=(
        9,
        7,
    ))
auto_scale_lr = dict(base_batch_size=4096)
averaging = dict(momentum=0.0001, priority='ABOVE_NORMAL', type='EMAHook')
bgr_mean = [
    103.53,
    116.28,
    123.675,
]
bgr_std = [
    57.375,
    57.12,
    58.395,
]
crop = [
    dict(crop_size=32, padding=4, type='RandomCrop'),
    dict(prob=0.5, type='RandomFlip'),
]
custom_hooks = [
    dict(momentum=0.1, priority='ABOVE_NORMAL', type='EMAHook'),
    dict(
        prune_rate=0.5,
        sparsity=0.4,
        type='pelk_mm.DynamicSparsityHook',
        update_interval=1),
]
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'pelk_mm.models',
        'pelk_mm.engine',
    ])
data_preprocessor = dict(
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    num_classes=6,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    to_rgb=True)
dataset = dict(
    _delete_=True,
    data_root='data',
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(crop_size=32, padding=4, type='RandomCrop'),
        dict(prob=0.5, type='RandomFlip'),
        dict(type='PackInputs'),
    ],
    type='CustomDataset')
dataset_type = 'ImageNet'
default_hooks = dict(
    checkpoint=dict(
        _scope_='mmpretrain',
        by_epoch=False,
        interval=2,
        max_keep_ckpts=5,
        save_best='accuracy/top1',
        type='pelk_mm.WholeCheckpointHook'),
    logger=dict(_scope_='mmpretrain', interval=1, type='LoggerHook'),
    param_scheduler=dict(_scope_='mmpretrain', type='ParamSchedulerHook'),
    sampler_seed=dict(_scope_='mmpretrain', type='DistSamplerSeedHook'),
    timer=dict(_scope_='mmpretrain', type='IterTimerHook'),
    visualization=dict(
        _scope_='mmpretrain', enable=False, type='VisualizationHook'))
default_scope = 'mmpretrain'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
launcher = 'none'
load_from = None
loading = dict(type='LoadImageFromFile')
log_level = 'INFO'
model = dict(
    _scope_='mmpretrain',
    backbone=dict(
        arch=dict(channels=(
            4,
            6,
        ), depths=(
            1,
            1,
        ), kernel_sizes=(
            9,
            7,
        )),
        drop_path_rate=0.2,
        layer_scale_init_value=1.0,
        type='pelk_mm.PeLK',
        width_factor=1.0),
    data_preprocessor=dict(
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        num_classes=6,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        to_rgb=True),
    head=dict(
        in_channels=6,
        init_cfg=None,
        loss=dict(
            label_smooth_val=0.1, mode='original', type='LabelSmoothLoss'),
        num_classes=6,
        type='LinearClsHead'),
    init_cfg=dict(
        bias=0.0, layer=[
            'Conv2d',
            'Linear',
        ], std=0.02, type='TruncNormal'),
    train_cfg=dict(augments=[
        dict(alpha=0.8, type='Mixup'),
        dict(alpha=1.0, type='CutMix'),
    ]),
    type='ImageClassifier')
optim_wrapper = dict(
    clip_grad=dict(max_norm=5.0),
    constructor='pelk_mm.LayerDecayOptimWrapperConstructor',
    optimizer=dict(
        _scope_='mmpretrain',
        betas=(
            0.9,
            0.999,
        ),
        eps=1e-08,
        lr=0.004,
        type='AdamW',
        weight_decay=0.05),
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        custom_keys=dict({
            '.absolute_pos_embed': dict(decay_mult=0.0),
            '.position_embedding': dict(decay_mult=0.0),
            '.relative_position_bias_table': dict(decay_mult=0.0)
        }),
        decay_type='layer_wise',
        flat_decay_mult=0.0,
        layer_decay_rate=0.7,
        norm_decay_mult=0.0))
packing = dict(type='PackInputs')
param_scheduler = [
    dict(
        by_epoch=True,
        convert_to_iter_based=True,
        end=1,
        start_factor=0.1,
        type='LinearLR'),
    dict(
        begin=1,
        by_epoch=True,
        convert_to_iter_based=True,
        end=2,
        eta_min=1e-06,
        type='CosineAnnealingLR'),
]
randomness = dict(deterministic=False, seed=None)
resume = False
sparsity = dict(
    prune_rate=0.5,
    sparsity=0.4,
    type='pelk_mm.DynamicSparsityHook',
    update_interval=2000)
test_cfg = dict()
test_dataloader = dict(
    batch_size=4,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_root='data',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='PackInputs'),
        ],
        type='CustomDataset'),
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(_scope_='mmpretrain', shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    _scope_='mmpretrain', topk=(
        1,
        5,
    ), type='Accuracy')
test_pipeline = [
    dict(_scope_='mmpretrain', type='LoadImageFromFile'),
    dict(
        _scope_='mmpretrain',
        backend='pillow',
        edge='short',
        interpolation='bicubic',
        scale=256,
        type='ResizeEdge'),
    dict(_scope_='mmpretrain', crop_size=224, type='CenterCrop'),
    dict(_scope_='mmpretrain', type='PackInputs'),
]
train_cfg = dict(
    max_epochs=2, type='pelk_mm.ResumableEpochBasedTrainLoop', val_interval=1)
train_dataloader = dict(
    batch_size=4,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_root='data',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(crop_size=32, padding=4, type='RandomCrop'),
            dict(prob=0.5, type='RandomFlip'),
            dict(type='PackInputs'),
        ],
        type='CustomDataset'),
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(_scope_='mmpretrain', shuffle=True, type='DefaultSampler'))
train_pipeline = [
    dict(_scope_='mmpretrain', type='LoadImageFromFile'),
    dict(
        _scope_='mmpretrain',
        backend='pillow',
        interpolation='bicubic',
        scale=224,
        type='RandomResizedCrop'),
    dict(
        _scope_='mmpretrain',
        direction='horizontal',
        prob=0.5,
        type='RandomFlip'),
    dict(
        _scope_='mmpretrain',
        hparams=dict(interpolation='bicubic', pad_val=[
            104,
            116,
            124,
        ]),
        magnitude_level=9,
        magnitude_std=0.5,
        num_policies=2,
        policies='timm_increasing',
        total_level=10,
        type='RandAugment'),
    dict(
        _scope_='mmpretrain',
        erase_prob=0.25,
        fill_color=[
            103.53,
            116.28,
            123.675,
        ],
        fill_std=[
            57.375,
            57.12,
            58.395,
        ],
        max_area_ratio=0.3333333333333333,
        min_area_ratio=0.02,
        mode='rand',
        type='RandomErasing'),
    dict(_scope_='mmpretrain', type='PackInputs'),
]
val_cfg = dict()
val_dataloader = dict(
    batch_size=4,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_root='data',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='PackInputs'),
        ],
        type='CustomDataset'),
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(_scope_='mmpretrain', shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    _scope_='mmpretrain', topk=(
        1,
        5,
    ), type='Accuracy')
vis_backends = [
    dict(_scope_='mmpretrain', type='LocalVisBackend'),
]
visualizer = dict(
    _scope_='mmpretrain',
    type='UniversalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
work_dir = 'work_dirs/sparse'
