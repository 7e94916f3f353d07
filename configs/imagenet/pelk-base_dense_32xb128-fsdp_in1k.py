# Weights, gradients and states of the optimiser are cut up among the processes.
_base_ = './pelk-base_dense_32xb128_in1k.py'

runner_type = 'pelk_mm.CheckedFlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(auto_wrap_policy=dict(type='pelk_mm.class_name_wrap_policy', types=['LargeKernelBlock'])),
    # Checkpoints of the whole model, as all other runs write and read them.
    state_dict_cfg='full')
# EMAHook copies whole weights.
custom_hooks = []
# A shard has one dimension whatever the weight has: what does not decay is named.
optim_wrapper = dict(paramwise_cfg=dict(flat_decay_mult=None, custom_keys={'.gamma': dict(decay_mult=0.0)}))
