# The schedule of the paper's ablations.
_base_ = './pelk-tiny_upernet_8xb2-160k_ade20k-512x512.py'

train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
