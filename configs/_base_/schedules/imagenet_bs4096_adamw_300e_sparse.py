# With the dynamic sparsity of SLaK-S and -B.
_base_ = './imagenet_bs4096_adamw_300e.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='pelk_mm.DynamicSparsityHook', sparsity=0.4, update_interval=100, prune_rate=0.3),
]
