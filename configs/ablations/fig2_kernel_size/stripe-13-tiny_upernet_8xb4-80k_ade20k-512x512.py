_base_ = '../table1_dense_vs_stripe/slak-51-tiny_no-sparsity_upernet_8xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(kernel_sizes=[13, 13, 13, 13]))
