"""From archives shaped like the published ones, with a few tiny files, to the folders the toolboxes read."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from mmseg.datasets import ADE20KDataset
from PIL import Image

from pelk_mm.datasets import archives, prepare
from pelk_mm.datasets.prepare import (
    check_ade20k_labels,
    prepare_ade20k,
    prepare_coco,
    prepare_imagenet,
    read_imagenet_devkit,
)

from ..helpers.archives import encode, tar_of, write_imagenet, write_zip

# The devkit's numbers 1, 2, 3; sorted they become the labels 2, 0, 1. The fourth is an inner node, used by no image.
WNIDS = ['n03000003', 'n01000001', 'n02000002', 'n00000004']
TRUTH = [3, 1, 1, 2]
VAL = [f'ILSVRC2012_val_0000000{number}.JPEG' for number in (1, 2, 3, 4)]


def jpeg(size=(4, 3)):
    return encode(Image.new('RGB', size), 'JPEG')


def ade20k_files(part, number, labels):
    """An image of 5 x 4 and its label map."""
    name = f'{dict(training="ADE_train", validation="ADE_val")[part]}_{number:08d}'
    return {f'ADEChallengeData2016/images/{part}/{name}.jpg': jpeg((5, 4)),
            f'ADEChallengeData2016/annotations/{part}/{name}.png': encode(Image.fromarray(labels), 'PNG')}


def content_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


@pytest.fixture
def imagenet(tmp_path):
    """Folder with ImageNet's three archives: 3 classes, 2 + 1 + 1 training and 4 validation images."""
    return write_imagenet(
        tmp_path / 'archives',
        train={wnid: [jpeg()] * count for wnid, count in zip(WNIDS, (2, 1, 1))},
        val=[jpeg((4, 3 + index)) for index in range(4)],
        synsets=list(zip(WNIDS, (0, 0, 0, 3))),
        truth=TRUTH)


LABELS = np.arange(20, dtype=np.uint8).reshape(4, 5) + 131


@pytest.fixture
def ade20k(tmp_path):
    """ADE20K's archive with two images in each part."""
    files = {}
    for part in ('training', 'validation'):
        for number in (1, 2):
            files |= ade20k_files(part, number, LABELS)
    return write_zip(tmp_path / 'ADEChallengeData2016.zip', files)


def labels_in_mmpretrain(root, split):
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(
        dict(type='ImageNet', data_root=str(root), split=split, metainfo=dict(classes=('a', 'b', 'c')), pipeline=[]))
    return {dataset.get_data_info(i)['img_path'][-28:]: int(dataset.get_gt_labels()[i]) for i in range(len(dataset))}


def test_devkit_gives_wnids_in_the_order_of_the_images(imagenet):
    wnid_of, wnids = read_imagenet_devkit(imagenet / 'ILSVRC2012_devkit_t12.tar.gz')
    assert wnids == ['n01000001', 'n02000002', 'n03000003']
    assert wnid_of == dict(zip(VAL, ['n02000002', 'n03000003', 'n03000003', 'n01000001']))


def test_imagenet_labels_by_meta_and_by_folders(imagenet, tmp_path):
    root = tmp_path / 'imagenet'
    prepare_imagenet(imagenet, root)
    assert (root / 'meta/val.txt').read_text().splitlines() == [f'{VAL[0]} 1', f'{VAL[1]} 2', f'{VAL[2]} 2',
                                                                f'{VAL[3]} 0']
    train = sorted(str(path.relative_to(root)) for path in (root / 'train').rglob('*.JPEG'))
    assert train == [
        'train/n01000001/n01000001_0.JPEG', 'train/n02000002/n02000002_0.JPEG', 'train/n03000003/n03000003_0.JPEG',
        'train/n03000003/n03000003_1.JPEG'
    ]
    assert labels_in_mmpretrain(root, 'val') == dict(zip(VAL, [1, 2, 2, 0]))
    assert sorted(labels_in_mmpretrain(root, 'train').values()) == [0, 1, 2, 2]
    folders = tmp_path / 'folders'
    prepare_imagenet(imagenet, folders, val_layout='folders')
    assert not (folders / 'meta').exists()
    assert labels_in_mmpretrain(folders, 'val') == labels_in_mmpretrain(root, 'val')


@pytest.mark.parametrize('layout', ['meta', 'folders'])
def test_imagenet_can_be_prepared_twice_and_resumed(imagenet, tmp_path, layout):
    root = tmp_path / 'imagenet'
    prepare_imagenet(imagenet, root, layout)
    complete = content_of(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob('*') if path.is_file()}
    prepare_imagenet(imagenet, root, layout)
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*') if path.is_file()} == times

    (root / 'train/n03000003/n03000003_1.JPEG').unlink()
    (root / 'val' / (VAL[3] if layout == 'meta' else f'n01000001/{VAL[3]}')).unlink()
    prepare_imagenet(imagenet, root, layout)
    assert content_of(root) == complete


def test_imagenet_sorts_images_that_were_extracted_already(imagenet, tmp_path):
    root = tmp_path / 'imagenet'
    (imagenet / 'ILSVRC2012_img_train.tar').unlink()
    prepare_imagenet(imagenet, root)
    (root / 'meta/val.txt').unlink()
    (imagenet / 'ILSVRC2012_img_val.tar').unlink()
    prepare_imagenet(imagenet, root, val_layout='folders')
    assert sorted(content_of(root / 'val')) == sorted(
        [f'n02000002/{VAL[0]}', f'n03000003/{VAL[1]}', f'n03000003/{VAL[2]}', f'n01000001/{VAL[3]}'])


def test_imagenet_layouts_are_not_mixed(imagenet, tmp_path):
    prepare_imagenet(imagenet, tmp_path / 'meta')
    before = content_of(tmp_path / 'meta')
    with pytest.raises(FileExistsError, match=r'val\.txt exists'):
        prepare_imagenet(imagenet, tmp_path / 'meta', val_layout='folders')
    assert content_of(tmp_path / 'meta') == before
    prepare_imagenet(imagenet, tmp_path / 'folders', val_layout='folders')
    with pytest.raises(FileExistsError, match='has class folders already'):
        prepare_imagenet(imagenet, tmp_path / 'folders')


def test_imagenet_keeps_other_labels_and_double_images(imagenet, tmp_path):
    root = tmp_path / 'imagenet'
    (root / 'meta').mkdir(parents=True)
    (root / 'meta/val.txt').write_text('mine.JPEG 7\n')
    with pytest.raises(FileExistsError, match='other labels'):
        prepare_imagenet(imagenet, root)
    assert (root / 'meta/val.txt').read_text() == 'mine.JPEG 7\n'

    root = tmp_path / 'double'
    (root / 'val/n02000002').mkdir(parents=True)
    for name in (VAL[0], f'n02000002/{VAL[0]}'):
        (root / 'val' / name).write_bytes(name.encode())
    with pytest.raises(FileExistsError, match='Both'):
        prepare_imagenet(imagenet, root, val_layout='folders')
    assert len(content_of(root)) == 2


def test_imagenet_says_what_is_missing(imagenet, tmp_path):
    with pytest.raises(FileNotFoundError, match='neither ILSVRC2012_img_train.tar nor .*https://image-net.org'):
        prepare_imagenet(tmp_path / 'empty', tmp_path / 'imagenet')
    with pytest.raises(ValueError, match="val_layout must be 'meta' or 'folders', but got 'flat'"):
        prepare_imagenet(imagenet, tmp_path / 'imagenet', val_layout='flat')
    (imagenet / 'ILSVRC2012_devkit_t12.tar.gz').unlink()
    with pytest.raises(FileNotFoundError, match='devkit_t12.tar.gz is missing'):
        prepare_imagenet(imagenet, tmp_path / 'imagenet')
    assert not (tmp_path / 'imagenet').exists()
    (imagenet / 'ILSVRC2012_img_val.tar').unlink()
    prepare_imagenet(imagenet, tmp_path / 'imagenet')
    assert [path.name for path in (tmp_path / 'imagenet').iterdir()] == ['train']


def test_imagenet_names_what_the_archives_lack(imagenet, tmp_path):
    archive = imagenet / 'ILSVRC2012_img_val.tar'
    archive.write_bytes(tar_of(dict.fromkeys(VAL[:2], jpeg())))
    with pytest.raises(FileNotFoundError, match=f'2 of 4 validation images are missing .* {VAL[2]}'):
        prepare_imagenet(imagenet, tmp_path / 'imagenet')
    archive.write_bytes(tar_of({'holiday.JPEG': jpeg()}))
    with pytest.raises(ValueError, match=r'holds holiday\.JPEG, for which the devkit has no label'):
        prepare_imagenet(imagenet, tmp_path / 'imagenet2')


def test_a_damaged_devkit_is_named(imagenet):
    devkit = imagenet / 'ILSVRC2012_devkit_t12.tar.gz'
    devkit.write_bytes(devkit.read_bytes()[:200])
    with pytest.raises(ValueError, match='devkit_t12.tar.gz is damaged'):
        read_imagenet_devkit(devkit)
    devkit.write_bytes(tar_of(dict(README=b'?'), 'w:gz'))
    with pytest.raises(ValueError, match='not the devkit'):
        read_imagenet_devkit(devkit)


def test_ade20k(ade20k, tmp_path):
    prepare_ade20k(ade20k, tmp_path / 'ade')
    complete = content_of(tmp_path / 'ade')
    assert len(complete) == 8
    (tmp_path / 'ade/ADEChallengeData2016/images/training/ADE_train_00000002.jpg').unlink()
    prepare_ade20k(ade20k, tmp_path / 'ade')
    assert content_of(tmp_path / 'ade') == complete

    init_default_scope('mmseg')
    root = tmp_path / 'ade/ADEChallengeData2016'
    dataset = DATASETS.build(
        dict(
            type='ADE20KDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]))
    assert len(dataset) == 2
    # 131 .. 150 in the file.
    assert dataset[1]['gt_seg_map'].ravel().tolist() == list(range(130, 150))


@pytest.mark.parametrize(('labels', 'message'), [
    (np.full((4, 5), 151, dtype=np.uint8), r'label 151, expected 0 \.\. 150'),
    (np.zeros((4, 5, 3), dtype=np.uint8), 'mode RGB'),
    (np.zeros((5, 4), dtype=np.uint8), r'\(4, 5\), its image has \(5, 4\)'),
])
def test_ade20k_labels_are_checked(ade20k, tmp_path, labels, message):
    write_zip(ade20k, ade20k_files('training', 1, LABELS) | ade20k_files('training', 3, labels))
    with pytest.raises(ValueError, match=f'(?s)1 label maps are wrong.*ADE_train_00000003.*{message}'):
        prepare_ade20k(ade20k, tmp_path / 'ade')


def test_ade20k_labels_without_image_are_reported(ade20k, tmp_path):
    prepare_ade20k(ade20k, tmp_path / 'ade')
    root = tmp_path / 'ade/ADEChallengeData2016'
    assert check_ade20k_labels(root) == []
    (root / 'images/validation/ADE_val_00000001.jpg').unlink()
    (problem, ) = check_ade20k_labels(root)
    assert 'ADE_val_00000001.jpg is missing' in problem


def test_coco_extracts_what_is_there(tmp_path):
    write_zip(tmp_path / 'val2017.zip', {'val2017/': '', 'val2017/000000000001.jpg': jpeg()})
    prepare_coco(tmp_path, tmp_path / 'coco')
    assert list(content_of(tmp_path / 'coco')) == ['val2017/000000000001.jpg']
    write_zip(tmp_path / 'annotations_trainval2017.zip', {'annotations/instances_val2017.json': '{}'})
    prepare_coco(tmp_path, tmp_path / 'coco')
    assert list(content_of(tmp_path / 'coco')) == ['annotations/instances_val2017.json', 'val2017/000000000001.jpg']
    with pytest.raises(FileNotFoundError, match='none of train2017.zip, val2017.zip, annotations_trainval2017.zip'):
        prepare_coco(tmp_path / 'elsewhere', tmp_path / 'coco')
    with pytest.raises(FileNotFoundError, match='data.csail.mit.edu'):
        prepare_ade20k(tmp_path / 'ADEChallengeData2016.zip', tmp_path)


def test_nothing_is_overwritten(ade20k, imagenet, tmp_path):
    mine = tmp_path / 'ade/ADEChallengeData2016/images/training/ADE_train_00000002.jpg'
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'mine')
    with pytest.raises(FileExistsError, match='ADE_train_00000002.jpg exists with 4 bytes'):
        prepare_ade20k(ade20k, tmp_path / 'ade')
    assert content_of(tmp_path / 'ade') == {str(mine.relative_to(tmp_path / 'ade')): b'mine'}

    mine = tmp_path / 'imagenet/train/n03000003/n03000003_0.JPEG'
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'mine')
    with pytest.raises(FileExistsError, match='n03000003_0.JPEG exists with 4 bytes'):
        prepare_imagenet(imagenet, tmp_path / 'imagenet')
    assert mine.read_bytes() == b'mine'


@pytest.mark.parametrize('name', ['../escape.jpg', '/escape.jpg', 'a/../../escape.jpg'])
def test_archives_cannot_write_elsewhere(tmp_path, name):
    write_zip(tmp_path / 'a.zip', {name: b'x'})
    with pytest.raises(ValueError, match='leaves the folder'):
        archives.extract_zip(tmp_path / 'a.zip', tmp_path / 'out')
    (tmp_path / 'a.tar').write_bytes(tar_of({name: b'x'}))
    with pytest.raises(ValueError, match='leaves the folder'):
        archives.extract_tar(tmp_path / 'a.tar', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_links_in_archives_are_refused(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w:') as opened:
        link = tarfile.TarInfo('link.jpg')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        opened.addfile(link)
    with pytest.raises(ValueError, match='link.jpg, which is no plain file'):
        archives.extract_tar(tmp_path / 'a.tar', tmp_path / 'out')


def test_damaged_archives_are_named_and_leave_no_halves(imagenet, tmp_path):
    write_zip(tmp_path / 'a.zip', {'one.jpg': np.random.RandomState(0).bytes(5000)})
    damaged = bytearray((tmp_path / 'a.zip').read_bytes())
    damaged[2000] ^= 255
    (tmp_path / 'a.zip').write_bytes(damaged)
    with pytest.raises(ValueError, match='a.zip is damaged'):
        archives.extract_zip(tmp_path / 'a.zip', tmp_path / 'out')
    assert content_of(tmp_path / 'out') == {}

    for name, extract in (('train', archives.extract_tar_of_tars), ('val', archives.extract_tar)):
        archive = imagenet / f'ILSVRC2012_img_{name}.tar'
        whole = archive.read_bytes()
        with tarfile.open(archive) as opened:
            second = opened.getmembers()[1].offset
        # Cut off inside a file, between two files, inside a header.
        for length in (700, second, second + 200):
            archive.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=f'img_{name}.tar is damaged'):
                extract(archive, tmp_path / 'out')
        archive.write_bytes(b'no archive at all' * 100)
        with pytest.raises(ValueError, match=f'img_{name}.tar is damaged or no tar archive'):
            extract(archive, tmp_path / 'out')
    assert content_of(tmp_path / 'out') == {}


def test_only_tars_are_expected_in_a_tar_of_tars(tmp_path):
    (tmp_path / 'a.tar').write_bytes(tar_of({'cat.JPEG': jpeg()}))
    with pytest.raises(ValueError, match=r'nothing but \.tar archives, but holds cat\.JPEG'):
        archives.extract_tar_of_tars(tmp_path / 'a.tar', tmp_path / 'out')


def test_a_full_disk_is_noticed_before_anything_is_written(ade20k, imagenet, tmp_path, monkeypatch):
    usage = archives.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, 'disk_usage', lambda path: usage._replace(free=100))
    with pytest.raises(OSError, match='GiB are free'):
        prepare_ade20k(ade20k, tmp_path / 'out')
    with pytest.raises(OSError, match='GiB are free'):
        archives.extract_tar_of_tars(imagenet / 'ILSVRC2012_img_train.tar', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_number_of_ade20k_classes_is_mmsegs():
    assert len(ADE20KDataset.METAINFO['classes']) == prepare.ADE20K_NUM_CLASSES


def test_ade20k_takes_the_folder_of_its_archive(ade20k, tmp_path):
    prepare_ade20k(ade20k.parent, tmp_path / 'ade')
    assert len(content_of(tmp_path / 'ade')) == 8
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=r'empty is a folder without ADEChallengeData2016\.zip\. Get it'):
        prepare_ade20k(tmp_path / 'empty', tmp_path / 'ade2')
    extracted = tmp_path / 'ade/ADEChallengeData2016'
    with pytest.raises(FileNotFoundError, match='The data are extracted there already') as error:
        prepare_ade20k(extracted, tmp_path / 'ade2')
    assert f'ln -s {extracted} {tmp_path / "ade2/ADEChallengeData2016"}. ' in str(error.value)


def test_coco_takes_one_archive(tmp_path):
    for split in ('train', 'val'):
        write_zip(tmp_path / f'{split}2017.zip', {f'{split}2017/1.jpg': b'x', f'{split}2017/2.jpg': b'x'})
    prepare_coco(tmp_path / 'train2017.zip', tmp_path / 'coco')
    assert set(content_of(tmp_path / 'coco')) == {'train2017/1.jpg', 'train2017/2.jpg'}
    with pytest.raises(ValueError, match=r'train\.zip must be a folder with train2017\.zip, .*, or one of these files'):
        prepare_coco(write_zip(tmp_path / 'train.zip', {}), tmp_path / 'coco')
    with pytest.raises(FileNotFoundError, match='There is no folder .*nowhere, so it holds none of train2017'):
        prepare_coco(tmp_path / 'nowhere', tmp_path / 'coco')
    (tmp_path / 'coco/annotations').mkdir()
    with pytest.raises(FileNotFoundError, match=f'ln -s {tmp_path}/coco data/coco'):
        prepare_coco(tmp_path / 'coco', Path('data/coco'))


def test_imagenet_takes_one_archive(imagenet, tmp_path):
    prepare_imagenet(imagenet / 'ILSVRC2012_img_train.tar', tmp_path / 'imagenet')
    assert [path.name for path in (tmp_path / 'imagenet').iterdir()] == ['train']
    prepare_imagenet(imagenet / 'ILSVRC2012_img_val.tar', tmp_path / 'imagenet2')
    assert sorted(path.name for path in (tmp_path / 'imagenet2').iterdir()) == ['meta', 'val']
    with pytest.raises(ValueError, match=r'x\.tar must be a folder with ILSVRC2012_img_train\.tar'):
        prepare_imagenet((imagenet / 'ILSVRC2012_img_train.tar').rename(imagenet / 'x.tar'), tmp_path / 'imagenet')
