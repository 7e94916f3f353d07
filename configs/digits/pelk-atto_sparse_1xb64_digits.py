# With dynamic sparsity: about as many updates as PeLK-T has, in fewer steps.
_base_ = './pelk-atto_1xb64_digits.py'

custom_hooks = [dict(type='pelk_mm.DynamicSparsityHook', sparsity=0.4, update_interval=33, prune_rate=0.5)]
