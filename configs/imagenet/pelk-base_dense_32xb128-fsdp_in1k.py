# Weights, gradients and states of the optimiser are cut up among the processes.
_base_ = './pelk-base_dense_32xb128_in1k.py'

runner_type = 'pelk_mm.CheckedFlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(auto_wrap_policy=dict(type='pelk_mm.class_name_wrap_policy', types=['LargeKernelBlock'])),
    # Checkpoints of the complete model, as all other runs write and read them.
    state_dict_cfg='full')
# EMAHook copies unsharded weights.
custom_hooks = []
# Every shard has one dimension, so the weights that do not decay are named.
optim_wrapper = dict(paramwise_cfg=dict(flat_decay_mult=None, custom_keys={'.gamma': dict(decay_mult=0.0)}))
