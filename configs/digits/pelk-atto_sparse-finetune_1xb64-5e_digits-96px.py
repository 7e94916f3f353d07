# Fine-tuning of the sparse classifier at 96 pixels instead of 64. Its zeros stay where they are.
_base_ = './pelk-atto_sparse_1xb64_digits.py'

load_from = 'work_dirs/pelk-atto_sparse_1xb64_digits/epoch_20.pth'
custom_hooks = [dict(type='pelk_mm.DynamicSparsityHook', init='zeros')]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=96),
    dict(type='RandomCrop', crop_size=96, padding=9, padding_mode='reflect'),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.3, backend='cv2'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=96), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=4e-4, weight_decay=1e-8))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, end=5, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=5)
