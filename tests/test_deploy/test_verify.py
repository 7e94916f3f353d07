"""Comparisons of two forms of a model report every difference."""

import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from pelk_mm.deploy import Detections, Difference, Predictions


def test_errors_are_those_of_the_tensors():
    difference = Difference('layer', True)
    difference.add([torch.tensor([1., -4.])], [torch.tensor([1.5, -4.])])
    difference.add([torch.tensor([2., 2.])], [torch.tensor([2., 1.])])
    assert (difference.maximum, difference.mean, difference.magnitude) == (1.0, 0.375, 4.0)
    assert difference.relative == 0.25
    for wrong in ([torch.tensor([float('nan'), 1.])], [torch.zeros(3)], []):
        broken = Difference('layer', True)
        broken.add([torch.zeros(2)], wrong)
        assert broken.relative == float('inf')
    infinite = Difference('layer', True)
    infinite.add([torch.tensor([float('inf'), 1.])], [torch.tensor([float('inf'), 1.])])
    assert infinite.relative == float('inf')


def test_detections_match_by_class_and_place():
    before = InstanceData(
        bboxes=torch.tensor([[0., 0, 10, 10], [20, 20, 40, 40], [5, 5, 9, 9]]),
        labels=torch.tensor([1, 2, 3]),
        scores=torch.tensor([0.9, 0.8, 0.7]))
    after = InstanceData(
        bboxes=torch.tensor([[20., 20, 40, 40.5], [0, 0, 10, 10]]),
        labels=torch.tensor([2, 0]),
        scores=torch.tensor([0.75, 0.9]))
    detections = Detections()
    detections.add(before, after)
    assert (detections.before, detections.after, detections.matched) == (3, 2, 1)
    assert detections.score_error == pytest.approx(0.05)


def test_predictions_that_differ_are_counted():
    from mmpretrain.structures import DataSample
    from mmseg.structures import SegDataSample
    found = Predictions()
    found.add(DataSample().set_pred_score(torch.tensor([.1, .6, .3])).set_pred_label(torch.tensor([1, 2])),
              DataSample().set_pred_score(torch.tensor([.1, .5, .4])).set_pred_label(torch.tensor([2])))
    assert (found.decisions, found.equal, found.images_equal) == (3, 2, 0)
    labels = [DataSample().set_pred_score(torch.tensor([.1, score])).set_pred_label(1) for score in (.9, .8)]
    one_label = Predictions()
    one_label.add(*labels)
    assert (one_label.equal, one_label.images_equal) == (2, 1)
    assert found.score_error == pytest.approx(0.1)
    maps = [SegDataSample(pred_sem_seg=PixelData(data=torch.tensor([[[0.0, value]]]))) for value in (0, 1)]
    found.add(*maps)
    assert (found.decisions, found.equal, found.images) == (5, 3, 2)
    assert found.differing == found.error == 0.4
    found.add(maps[0], SegDataSample(pred_sem_seg=PixelData(data=torch.zeros(1, 1, 3))))
    assert found.error == float('inf')
