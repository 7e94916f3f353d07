_base_ = 'mmseg::_base_/models/upernet_r50.py'
custom_imports = dict(imports=['pelk_mm.models', 'pelk_mm.engine'], allow_failed_imports=False)

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='pelk_mm.PeLK',
        arch='tiny',
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        branch_norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint=None)),
    decode_head=dict(in_channels=[124, 249, 499, 998], num_classes=150),
    auxiliary_head=dict(in_channels=499, num_classes=150))
