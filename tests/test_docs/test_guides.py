"""The three guides, followed literally: from archives as they are downloaded to the test of a checkpoint.

The data are small and have odd files in them, the backbones are narrow; archives, commands, configs, pipelines, hooks
and schedules are the real ones. Only what is for several GPUs or machines is not run.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ..helpers.archives import encode, write_imagenet, write_zip
from ..helpers.pages import commands_of

pytestmark = pytest.mark.slow

# All keys except those of the norms behind the first three stages, which a classifier does not have.
LOADED = "PeLK: 117 of 123 keys loaded from 'work_dirs/pelk-tiny_32xb128_in1k/epoch_300.pth'"
RNG = np.random.default_rng(0)
TINY = 'model.backbone.arch=atto model.backbone.kernel_sizes=[7,7,5,5] model.backbone.drop_path_rate=0.0'
LOADERS = ' '.join(f'{part}_dataloader.num_workers=0 {part}_dataloader.persistent_workers=False'
                   for part in ('train', 'val', 'test'))


class Guide:
    """Runs what a guide says, in a folder of its own, on one process and without mixed precision."""

    def __init__(self, root, folder, run_tool, monkeypatch, name, options, **values):
        self.run_tool, self.options = run_tool, f'{TINY} {LOADERS} {options}'.split()
        monkeypatch.chdir(folder)
        if not (folder / 'configs').exists():
            (folder / 'configs').symlink_to(root / 'configs')
        commands = commands_of(root / f'docs/guides/{name}.md')
        words = [[values.get(word, word) for word in command] for command in commands]
        single = [each for each in words if each[0] == 'python']
        self.prepare, self.check, self.train = single[:3]
        self.test = next(each for each in words if any('test.' in word or 'dist_test' in word for word in each))
        self.config = self.train[2]
        self.work = folder / 'work_dirs' / self.config.rpartition('/')[2][:-len('.py')]

    def run(self, words, *more, options=()):
        """Run a command, with further options for a small model."""
        words = [word for word in words if word != '--amp']
        if options and '--cfg-options' not in words:
            words = [*words, '--cfg-options']
        return self.run_tool(words[1].removeprefix('tools/'), *words[2:], *options, *more)

    def run_all(self, length, first, longer):
        """Prepare, train two iterations, validate, resume, test; return what checking, training and testing print."""
        code, prepared = self.run(self.prepare)
        assert code == 0, prepared
        code, checked = self.run(self.check)
        # Nothing is wrong except the numbers.
        assert code == 1
        assert all('; expected' in line for line in checked.splitlines() if line.startswith('[WRONG]')), checked
        code, trained = self.run(self.train, options=[*self.options, f'{length}={first[0]}'])
        assert code == 0, trained
        before = self.load(first[1])
        assert before['message_hub']['runtime_info']['iter'] == 1
        code, resumed = self.run(self.train, '--resume', options=[*self.options, f'{length}={longer[0]}'])
        assert code == 0, resumed
        assert f'resumed epoch: {before["meta"]["epoch"]}, iter: 2' in resumed
        after = self.load(longer[1])
        assert any(not torch.equal(value, after['state_dict'][name]) for name, value in before['state_dict'].items())
        # The guides name the last checkpoint of a complete training, and test with 8 GPUs.
        checkpoint = next(word for word in self.test if word.endswith('.pth'))
        shutil.copy(self.work / longer[1], checkpoint)
        code, tested = self.run(['python', 'tools/test.py', self.config, checkpoint], options=self.options)
        assert code == 0, tested
        return checked, trained, tested

    def load(self, name):
        return torch.load(self.work / name, map_location='cpu', weights_only=False)


def score(printed, name) -> float:
    return float(re.findall(rf'{name}: +(-?[\d.]+|nan)', printed)[-1])


def image(size=(60, 44), mode='RGB', kind='JPEG', **options) -> bytes:
    array = RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return encode(Image.fromarray(array).convert(mode), kind, **options)


def rotated() -> bytes:
    """A JPEG whose EXIF says that it is to be turned, so that 44 x 60 are 60 x 44."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return image((44, 60), exif=exif)


# All in files named .JPEG or .jpg, as in ImageNet and COCO: CMYK, grey, PNG, bytes behind the end.
ODD = [image(mode='CMYK'), image(mode='L'), image(kind='PNG'), image() + bytes(9)]


def imagenet_archives(folder):
    """1000 classes with an image each, the first with four odd ones; 4 images to validate."""
    wnids, plain = [f'n{number:08d}' for number in range(1000)], image()
    return write_imagenet(
        folder,
        train={wnid: [plain] if number else ODD for number, wnid in enumerate(wnids)},
        val=[*ODD[:3], rotated()],
        synsets=[(wnid, 0) for wnid in reversed(wnids)],
        truth=(1, 2, 3, 1000))


def ade20k_archive(path):
    """Four images to train, one to validate, with labels 0 .. 150."""
    files = {'ADEChallengeData2016/objectInfo150.txt': 'Idx Ratio Train Val Stuff Name'}
    for part, stem, contents in (('training', 'ADE_train', ODD), ('validation', 'ADE_val', ODD[:1])):
        for number, content in enumerate(contents, 1):
            labels = Image.fromarray(RNG.integers(0, 151, (44, 60), dtype=np.uint8))
            files[f'ADEChallengeData2016/images/{part}/{stem}_{number:08d}.jpg'] = content
            files[f'ADEChallengeData2016/annotations/{part}/{stem}_{number:08d}.png'] = encode(labels, 'PNG')
    write_zip(path, files)


def coco_archives(folder):
    """Images of all kinds, one without annotations, one with a crowd; 80 categories with COCO's gaps between ids."""
    from mmdet.datasets import CocoDataset
    folder.mkdir()
    # The ids of COCO go to 90.
    categories = [dict(id=i + 1 + i // 8, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'])]
    crowd = dict(size=[44, 60], counts=[100, 500, 44 * 60 - 600])
    annotations = {}
    for split, contents in (('train2017', [*ODD, image()]), ('val2017', [rotated(), ODD[0], image()])):
        write_zip(folder / f'{split}.zip', {f'{split}/{i:012d}.jpg': content for i, content in enumerate(contents)})
        images = [dict(id=i, file_name=f'{i:012d}.jpg', height=44, width=60) for i in range(len(contents))]
        # The last one has none.
        boxes = [
            dict(id=10 + i, image_id=i, category_id=categories[i]['id'], bbox=[4, 4, 40, 30], area=1200, iscrowd=0,
                 segmentation=[[4, 4, 44, 4, 44, 34, 4, 34]]) for i in range(len(contents) - 1)
        ]
        boxes.append(dict(boxes[0], id=99, iscrowd=1, segmentation=crowd, bbox=[2, 0, 12, 44], area=500))
        content = dict(info={}, licenses=[], images=images, annotations=boxes, categories=categories)
        annotations[f'annotations/instances_{split}.json'] = json.dumps(content)
        annotations[f'annotations/captions_{split}.json'] = '{}'
    write_zip(folder / 'annotations_trainval2017.zip', annotations)
    return folder


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """The folder that all three guides work in; detection and segmentation start from ImageNet's checkpoint."""
    return tmp_path_factory.mktemp('home')


def follow_imagenet(root, home, run_tool, monkeypatch):
    guide = Guide(
        root, home, run_tool, monkeypatch, 'imagenet',
        'model.head.in_channels=249 train_dataloader.batch_size=2 train_dataloader.dataset.indices=4',
        FOLDER_OF_ARCHIVES=str(imagenet_archives(home / 'archives')))
    return guide, guide.run_all('train_cfg.max_epochs', (1, 'epoch_1.pth'), (2, 'epoch_2.pth'))


@pytest.fixture
def classifier(root, home, run_tool, monkeypatch):
    """ImageNet's checkpoint, by the guide for ImageNet if that has not been followed yet."""
    if not (home / 'work_dirs/pelk-tiny_32xb128_in1k/epoch_300.pth').exists():
        follow_imagenet(root, home, run_tool, monkeypatch)


def test_imagenet(root, home, run_tool, monkeypatch):
    guide, (checked, trained, tested) = follow_imagenet(root, home, run_tool, monkeypatch)
    assert 'data/imagenet/train: 1003 images in 1000 class folders; expected 1281167 in 1000' in checked
    assert 'data/imagenet/meta/val.txt: 4 images of 4 classes; expected 50000' in checked
    assert (home / 'data/imagenet/meta/val.txt').read_text().split()[1::2] == ['999', '998', '997', '0']
    assert 0 <= score(tested, 'accuracy/top1') <= score(tested, 'accuracy/top5') <= 100
    assert score(tested, 'accuracy/top1') % 25 == 0
    # The checkpoint keeps both sets of weights, those that are averaged and those that are trained.
    averaged, trained_weights = (guide.load('epoch_2.pth')[key] for key in ('state_dict', 'ema_state_dict'))
    assert any(not torch.equal(value, trained_weights[f'module.{name}']) for name, value in averaged.items())


def test_ade20k(root, home, run_tool, monkeypatch, classifier):
    guide = Guide(
        root, home, run_tool, monkeypatch, 'ade20k',
        'model.decode_head.in_channels=[31,62,124,249] model.decode_head.channels=16 model.auxiliary_head.channels=16 '
        'model.auxiliary_head.in_channels=124 train_cfg.val_interval=2 default_hooks.checkpoint.interval=1')
    ade20k_archive(home / 'ADEChallengeData2016.zip')
    checked, trained, tested = guide.run_all('train_cfg.max_iters', (2, 'iter_2.pth'), (3, 'iter_3.pth'))
    assert 'images/training: 4 images; expected 20210' in checked
    assert LOADED in trained
    assert 0 <= score(tested, 'mIoU') <= 100


def test_coco(root, home, run_tool, monkeypatch, classifier):
    heads = ' '.join(f'model.roi_head.bbox_head.{i}.{key}' for i in range(3) for key in (
        'in_channels=16', 'conv_out_channels=16', 'fc_out_channels=32', 'num_shared_convs=1'))
    guide = Guide(
        root, home, run_tool, monkeypatch, 'coco',
        f'{heads} model.neck.in_channels=[31,62,124,249] model.neck.out_channels=16 model.rpn_head.in_channels=16 '
        'model.rpn_head.feat_channels=16 model.roi_head.bbox_roi_extractor.out_channels=16 '
        'model.roi_head.mask_roi_extractor.out_channels=16 model.roi_head.mask_head.in_channels=16 '
        'model.roi_head.mask_head.conv_out_channels=16 model.train_cfg.rpn_proposal.nms_pre=50 '
        'model.test_cfg.rpn.nms_pre=50 model.test_cfg.rpn.max_per_img=20 model.test_cfg.rcnn.score_thr=0.0',
        FOLDER_OF_ARCHIVES=str(coco_archives(home / 'coco_archives')))
    checked, trained, tested = guide.run_all('train_cfg.max_epochs', (1, 'epoch_1.pth'), (2, 'epoch_2.pth'))
    assert LOADED in trained
    assert 'annotations/instances_train2017.json: 5 images, 80 categories; expected 118287 and 80' in checked
    assert 0 <= score(tested, 'coco/bbox_mAP') <= 1
    assert 0 <= score(tested, 'coco/segm_mAP') <= 1
