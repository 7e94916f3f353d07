"""The built-in data through the real data sets, pipelines and metrics of the three toolboxes."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import PixelData

from pelk_mm.datasets import DIGIT_CLASSES, SEGMENTATION_CLASSES


@pytest.fixture
def load(root, digit_scenes):
    """Load a base config onto the small set, in the scope of its toolbox."""

    def load(name, scope):
        init_default_scope(scope)
        content = (root / f'configs/_base_/datasets/{name}.py').read_text()
        assert content.count("'data/digit_scenes") == 1
        return Config.fromstring(content.replace("'data/digit_scenes", f"'{digit_scenes}"), file_format='.py')

    return load


def build(cfg, split):
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    dataset.full_init()
    return dataset


def evaluate(cfg, dataset, to_prediction):
    """Metrics of the config's evaluator when the truth is given as prediction."""
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]
        evaluator.process([to_prediction(sample['data_samples'])], pseudo_collate([sample]))
    return evaluator.evaluate(len(dataset))


def test_classification(load):
    cfg = load('digits_cls', 'mmpretrain')
    for split, number in (('train', 40), ('val', 20)):
        dataset = build(cfg, split)
        assert len(dataset) == number
        assert dataset.metainfo['classes'] == DIGIT_CLASSES
        labels = [dataset[index]['data_samples'].gt_label.item() for index in range(number)]
        assert np.bincount(labels).tolist() == [number // 10] * 10
        sample = dataset[number - 1]
        assert sample['inputs'].shape == (3, 64, 64)
        assert sample['inputs'].dtype == torch.uint8
        assert '/9/' in sample['data_samples'].img_path

    def predict(sample):
        scores = torch.nn.functional.one_hot(sample.gt_label[0], 10).float()
        return sample.set_pred_score(scores).set_pred_label(scores.argmax()).to_dict()

    assert evaluate(cfg, dataset, predict) == {'accuracy/top1': 100, 'accuracy/top5': 100}


def test_segmentation(load, digit_scenes):
    cfg = load('digits_seg', 'mmseg')
    train, val = build(cfg, 'train'), build(cfg, 'val')
    assert (len(train), len(val)) == (12, 6)
    assert train.metainfo['classes'] == SEGMENTATION_CLASSES == val.metainfo['classes']
    for index in range(12):
        sample = train[index]
        labels = sample['data_samples'].gt_sem_seg.data
        assert sample['inputs'].shape[1:] == labels.shape[1:]
        assert max(labels.shape) <= 128
        assert set(labels.unique().tolist()) <= {*range(11), 255}
    for index in range(6):
        labels = val[index]['data_samples'].gt_sem_seg.data
        assert labels.shape == (1, 128, 128)
        # Label 0 of the files never occurs, so nothing is ignored, and the background is class 0.
        assert labels.max() <= 10
        assert (labels == 0).float().mean() > 0.5

    def predict(sample):
        sample.pred_sem_seg = PixelData(data=sample.gt_sem_seg.data.clone())
        return sample.to_dict()

    metrics = evaluate(cfg, val, predict)
    assert metrics['mIoU'] == 100
    assert metrics['aAcc'] == 100


def test_detection(load):
    cfg = load('digits_det', 'mmdet')
    train, val = build(cfg, 'train'), build(cfg, 'val')
    assert (len(train), len(val)) == (12, 6)
    assert train.metainfo['classes'] == DIGIT_CLASSES == val.metainfo['classes']
    for index in range(12):
        sample = train[index]
        instances = sample['data_samples'].gt_instances
        height, width = sample['data_samples'].img_shape
        assert sample['inputs'].shape == (3, height, width)
        assert height in (112, 128, 144, 160)
        assert 1 <= len(instances) == len(instances.masks) == len(instances.labels)
        # Boxes still fit the masks after both were resized, within a pixel of rounding.
        for box, mask in zip(instances.bboxes.tensor, instances.masks.masks):
            rows, cols = np.nonzero(mask)
            fit = torch.tensor([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1])
            assert (box - fit).abs().max() <= 1.5

    def predict(sample):
        truth = sample.gt_instances
        sample.pred_instances = type(truth)(
            bboxes=truth.bboxes.tensor,
            labels=truth.labels,
            scores=torch.ones(len(truth)),
            masks=torch.from_numpy(truth.masks.masks.astype(bool)))
        return sample.to_dict()

    metrics = evaluate(cfg, val, predict)
    assert metrics['coco/bbox_mAP'] == 1
    assert metrics['coco/segm_mAP'] == 1
