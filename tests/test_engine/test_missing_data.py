"""A run whose data are not there says how to get them, by the name under which check_dataset.py knows them."""

import pytest

from pelk_mm.engine.launch import load_config, run

CONFIGS = dict(
    imagenet='imagenet/pelk-tiny_32xb128_in1k.py',
    ade20k='ade20k/pelk-tiny_upernet_8xb2-160k_ade20k-512x512.py',
    coco='coco/cascade-mask-rcnn_pelk-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py')
HEADS = dict(
    imagenet={'model.head.in_channels': 249},
    ade20k={
        'model.decode_head.in_channels': [31, 62, 124, 249],
        'model.auxiliary_head.in_channels': 124
    },
    coco={'model.neck.in_channels': [31, 62, 124, 249]})


@pytest.mark.parametrize('mode', ['train', 'test'])
@pytest.mark.parametrize('name', CONFIGS)
def test_the_command_is_named(root, tmp_path, monkeypatch, name, mode):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(str(root / 'configs' / CONFIGS[name]), {'model.backbone.arch': 'atto', **HEADS[name]})
    with pytest.raises(FileNotFoundError) as error:
        run(cfg, mode)
    message = str(error.value)
    assert message.endswith(f'get the data: python tools/dataset_converters/check_dataset.py {name} says how')
    assert dict(imagenet='ImageNet (', ade20k='ADE20KDataset (', coco='_dataloader.dataset.ann_file: ')[name] in message
    assert f'data/{dict(ade20k="ade").get(name, name)}' in message


def test_images_that_are_missing_name_it_too(root, tmp_path, monkeypatch):
    """A folder with lists and labels."""
    monkeypatch.chdir(tmp_path)
    for part in ('images', 'annotations'):
        for split in ('training', 'validation'):
            folder = tmp_path / 'data/ade/ADEChallengeData2016' / part / split
            folder.mkdir(parents=True)
            if part == 'images':
                (folder / 'ADE_1.jpg').write_bytes(b'x')
    cfg = load_config(str(root / 'configs' / CONFIGS['ade20k']), {'model.backbone.arch': 'atto', **HEADS['ade20k']})
    with pytest.raises(FileNotFoundError, match=r'of 1 files looked for \(seg_map_path\) 1 are not there.*'
                       r'check_dataset\.py ade20k says how\. .*data_checks\.missing_files=False'):
        run(cfg, 'train')
