_base_ = 'mmpretrain::_base_/models/convnext/convnext-tiny.py'
custom_imports = dict(imports=['pelk_mm.models', 'pelk_mm.engine'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='pelk_mm.PeLK',
        arch='tiny',
        drop_path_rate=0.1,
        branch_norm_cfg=dict(type='SyncBN')),
    head=dict(in_channels=998))
