# One stage at the size of the map, between a 1x1 stem and a 1x1 classifier: only the mixers see other pixels.
# Norms are BatchNorm: most pixels are empty, and LayerNorm would turn the stem's bias there into a full-sized feature.
custom_imports = dict(imports=['pelk_mm.models', 'pelk_mm.engine'], allow_failed_imports=False)
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[128] * 3, std=[127] * 3, bgr_to_rgb=False, size=(64, 64), seg_pad_val=255),
    backbone=dict(
        type='pelk_mm.PeLK',
        arch=dict(depths=[1], channels=[16], kernel_sizes=[51], center=5),
        stem_patch_size=1,
        conv_ratio=1.0,
        width_factor=1.0,
        ffn_ratio=2.0,
        small_kernel=None,
        position_embedding=False,
        layer_scale_init_value=0.0,
        norm_cfg=norm_cfg,
        branch_norm_cfg=norm_cfg,
        out_indices=(0, ),
        gap_before_final_norm=False),
    decode_head=dict(
        type='FCNHead',
        in_channels=16,
        in_index=0,
        channels=16,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=4,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
