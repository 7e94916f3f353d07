# Maps drawn as they are loaded, see docs/benchmarks/reach.md. Each map of the training data is seen once.
dataset_type = 'pelk_mm.NearestSeedDataset'
pipeline = [
    dict(type='PackSegInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'distance')),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type=dataset_type, length=4096, seed=1, pipeline=pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, length=128, seed=0, pipeline=pipeline))
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU']),
    dict(type='pelk_mm.AccuracyByDistance', edges=[0, 4, 8, 12, 16, 20, 24, 32]),
]
test_evaluator = val_evaluator
