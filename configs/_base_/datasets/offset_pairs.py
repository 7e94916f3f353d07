# The dataloaders are those of the nearest seed.
_base_ = './nearest_seed.py'

dataset_type = 'pelk_mm.OffsetPairsDataset'
train_dataloader = dict(dataset=dict(type=dataset_type))
val_dataloader = dict(dataset=dict(type=dataset_type, length=256))
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU']),
    dict(type='pelk_mm.AccuracyByDistance', edges=[4, 9, 16, 26]),
]
test_evaluator = val_evaluator
