# ConvNeXt's, to go on from 224 at 384 px: 30 epochs without warm-up, layer-wise decay, plain weights.
_base_ = './imagenet_bs4096_adamw_300e.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-5, weight_decay=1e-8),
    constructor='pelk_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.7, decay_type='layer_wise'))
# To 1e-6, and of lower layers to the same share: an eta_min would raise the rate of the lowest.
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=True, begin=0, end=30, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
custom_hooks = []

# base_batch_size = (16 GPUs) x (32 samples per GPU)
auto_scale_lr = dict(base_batch_size=512)
