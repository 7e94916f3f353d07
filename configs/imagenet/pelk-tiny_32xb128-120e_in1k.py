# The schedule of the paper's ablations.
_base_ = './pelk-tiny_32xb128_in1k.py'

train_cfg = dict(max_epochs=120)
