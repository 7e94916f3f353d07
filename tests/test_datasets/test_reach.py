"""Reach tasks: maps against brute force, what a sample holds, and accuracy by distance counted by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, METRICS, DefaultScope

from pelk_mm.compat import setup
from pelk_mm.datasets.reach_maps import COLORS, IGNORED, draw_nearest_seed, draw_offset_pairs
from pelk_mm.engine.launch import load_config

pytest.importorskip('mmseg')
CONFIGS = sorted((Path(__file__).resolve().parents[2] / 'configs/reach').glob('*.py'))


@pytest.mark.parametrize('seed', range(6))
def test_nearest_seed_against_brute_force(seed):
    image, labels, distance = draw_nearest_seed(np.random.default_rng(seed), size=12, num_seeds=5)
    seeds = [(y, x, next(i for i in range(4) if (image[y, x] == COLORS[i]).all()))
             for y in range(12) for x in range(12) if (image[y, x] != 128).any()]
    assert len(seeds) == 5
    for y in range(12):
        for x in range(12):
            squares = [(y - row)**2 + (x - column)**2 for row, column, _ in seeds]
            classes = {label for square, (_, _, label) in zip(squares, seeds) if square == min(squares)}
            assert labels[y, x] == (classes.pop() if len(classes) == 1 else IGNORED)
            assert distance[y, x] == pytest.approx(min(squares)**0.5)


def relation(dy, dx, exact):
    """The kind and the distance of a pair, in the words of docs/benchmarks/reach.md."""
    near, far = sorted((abs(dy), abs(dx)))
    if far > 25:
        return None
    assert far >= 4, 'no B is nearer than 4 pixels'
    if near == far if exact else near >= 0.75 * far:
        return 'diagonal', far
    if exact and far - near <= 3:
        return 'miss', far
    assert near <= far / 4, 'a B is neither at a diagonal nor along an axis'
    return 'axis', far


@pytest.mark.parametrize('exact', [False, True])
def test_offset_pairs_against_brute_force(exact):
    """Labels are right; each range has as many groups, balanced by class and distractor; other A are not seen."""
    for seed in range(8):
        image, labels, distance = draw_offset_pairs(np.random.default_rng(seed), exact=exact)
        targets = np.argwhere((image != 128).any(-1))
        assert len(targets) == 5
        counts = {}
        for y, x in np.argwhere(labels != IGNORED):
            found = {}
            for kind, far in filter(None, (relation(row - y, column - x, exact) for row, column in targets)):
                found[kind] = min(far, found.get(kind, 99))
            assert labels[y, x] == ('diagonal' in found)
            assert ('miss' in found) == (exact and labels[y, x] == 0)
            for far in found.values():
                # All of the group are in one range.
                assert np.digitize(far, [9, 16]) == np.digitize(distance[y, x], [9, 16])
            group = int(np.digitize(distance[y, x], [9, 16])), int(labels[y, x]), 'axis' in found
            counts[group] = counts.get(group, 0) + 1
        assert len(counts) == 12
        assert len(set(counts.values())) == 1
        assert not distance[labels == IGNORED].any()


def test_maps_too_small_for_pairs_are_refused():
    with pytest.raises(ValueError, match='size must leave room for offsets of up to 25 pixels, got 12'):
        draw_offset_pairs(np.random.default_rng(0), size=12)


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_samples(config):
    """A sample depends on seed and index only; training and validation maps differ; labels are of the classes."""
    setup()
    cfg = load_config(str(config))
    with DefaultScope.overwrite_default_scope('mmseg'):
        train, again, val = (DATASETS.build(part.dataset)
                             for part in (cfg.train_dataloader, cfg.train_dataloader, cfg.val_dataloader))
    assert (len(train), train[7]['inputs'].shape, train[7]['inputs'].dtype) == (4096, (3, 64, 64), torch.uint8)
    again[3]
    assert torch.equal(train[7]['inputs'], again[7]['inputs'])
    assert not torch.equal(train[7]['inputs'], train[8]['inputs'])
    assert not torch.equal(train[7]['inputs'], val[7]['inputs'])
    sample = val[0]['data_samples']
    classes = len(val.metainfo['classes'])
    assert set(sample.gt_sem_seg.data.unique().tolist()) - {IGNORED} <= set(range(classes))
    assert cfg.model.decode_head.num_classes == classes
    assert sample.distance.shape == (64, 64)
    with pytest.raises(ValueError, match='length must be an int of at least 1, got 0'):
        type(val)(length=0)


def test_accuracy_by_distance_by_hand():
    metric = METRICS.build(dict(type='pelk_mm.AccuracyByDistance', edges=[1, 3, 5, 9]))
    for labels, predicted, distance in (([[0, 1, IGNORED]], [[0, 0, 0]], [[1, 2.9, 1]]),
                                        ([[1, 1, 0]], [[1, 0, 0]], [[3, 9, 0.5]])):
        metric.process({}, [dict(pred_sem_seg=dict(data=torch.tensor([predicted])), distance=np.array(distance),
                                 gt_sem_seg=dict(data=torch.tensor([labels])))])
    # Right are 1 of 2 from 1 to 3, 1 of 1 from 3 to 5, none of 1 beyond the last edge, 1 of 1 below the first.
    assert metric.evaluate(2) == {'reach/acc': 60.0, 'reach/acc_1_3': 50.0, 'reach/acc_3_5': 100.0}
    with pytest.raises(ValueError, match='edges must be'):
        METRICS.build(dict(type='pelk_mm.AccuracyByDistance', edges=[3, 1]))
