_base_ = '../table1_dense_vs_stripe/replk-51-tiny_no-sparsity_32xb128-120e_in1k.py'

model = dict(backbone=dict(kernel_sizes=[7, 7, 7, 7]))
