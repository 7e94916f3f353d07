_base_ = [
    '../_base_/models/upernet_pelk.py',
    '../_base_/datasets/digits_seg.py',
    '../_base_/schedules/digits_adamw_1600it.py',
    '../_base_/runtimes/mmseg.py',
]
norm_cfg = dict(type='BN')
# Four pixels of five are background: unweighted, nothing else is predicted for hundreds of iterations.
loss = dict(class_weight=[0.2] + [1.0] * 10)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    # Kernels as large as the maps of the 64 pixel digits, so that every cell is trained there.
    backbone=dict(arch='atto', kernel_sizes=[31, 15, 7, 5], drop_path_rate=0.0, branch_norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[31, 62, 124, 249], channels=32, num_classes=11, norm_cfg=norm_cfg, loss_decode=loss),
    auxiliary_head=dict(in_channels=124, channels=32, num_classes=11, norm_cfg=norm_cfg, loss_decode=loss))
