_base_ = '../../coco/cascade-mask-rcnn_pelk-tiny_dense_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'
custom_imports = dict(imports=['mmpretrain.models', 'pelk_mm.engine'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        gap_before_final_norm=False,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint=None)))
