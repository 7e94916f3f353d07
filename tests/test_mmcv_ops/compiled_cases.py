"""Calls of ``mmcv.ops`` whose results with mmcv's compiled operators are in ``compiled_cases.npz``.

Written once by onedl-mmcv 2.3.6, compiled with PyTorch 2.11, on an x86-64 CPU::

    python tests/test_mmcv_ops/compiled_cases.py

which refuses to run with anything but compiled operators.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from mmcv import ops

FILE = Path(__file__).with_suffix('.npz')
# Operators of which CPU code is compiled, and which are met to the last bit.
EXACT = ('nms', 'batched_nms', 'roi_align')


def results() -> dict:
    """Results of every case, as NumPy arrays by ``<case>/<what>``."""
    found = {}
    for cases in (nms_cases, batched_nms_cases, soft_nms_cases, nms_match_cases, bbox_overlaps_cases, roi_align_cases,
                  deform_conv_cases, modulated_deform_conv_cases, psamask_cases):
        for name, values in cases():
            found |= {f'{name}/{key}': value.detach().numpy() for key, value in values.items()}
    return found


def draws(seed: int):
    """NumPy's legacy generator, whose numbers do not change."""
    return np.random.RandomState(seed)


def tensor(values, grad: bool = False) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float32), requires_grad=grad)


def boxes_and_scores(seed: int, count: int, ties: bool):
    """Boxes that crowd around few centres, and their scores."""
    draw = draws(seed)
    corners = draw.choice(8, (count, 2)) * 20 + draw.rand(count, 2) * 9
    boxes = np.concatenate([corners, corners + 8 + 12 * draw.rand(count, 2)], 1)
    scores = draw.rand(count)
    if ties:
        # Integer corners make overlaps that are exactly a threshold, too.
        boxes, scores = boxes.round(), scores.round(1)
    return tensor(boxes), tensor(scores)


def nms_cases():
    for threshold, offset, ties in itertools.product((0.1, 0.5, 0.7), (0, 1), (False, True)):
        boxes, scores = boxes_and_scores(0, 150, ties)
        dets, kept = ops.nms(boxes, scores, threshold, offset)
        yield f'nms-{threshold}-{offset}-{ties}', dict(dets=dets, kept=kept)
    dets, kept = ops.nms(*boxes_and_scores(1, 60, True), 0.6, score_threshold=0.35, max_num=9)
    yield 'nms-limits', dict(dets=dets, kept=kept)
    # Two unit squares that share a third: 1/3 as fp32 is above 1/3 as fp64 and equal to itself.
    pair = tensor([[0, 0, 2, 1], [1, 0, 3, 1]])
    dets, kept = ops.nms(pair, tensor([0.9, 0.8]), 1 / 3)
    yield 'nms-equal-to-threshold', dict(dets=dets, kept=kept)
    dets, kept = ops.nms(tensor(np.zeros((0, 4))), tensor(np.zeros(0)), 0.5)
    yield 'nms-empty', dict(dets=dets, kept=kept)


def batched_nms_cases():
    boxes, scores = boxes_and_scores(2, 200, False)
    classes = torch.tensor(draws(3).randint(0, 4, 200))
    for name, options in (('together', {}), ('split', dict(split_thr=50)), ('soft', dict(type='soft_nms', sigma=0.4))):
        for agnostic in (False, True):
            if name == 'soft' and not agnostic:
                continue
            dets, kept = ops.batched_nms(
                boxes, scores, classes, dict(type='nms', iou_threshold=0.4) | options, class_agnostic=agnostic)
            # Soft-NMS has an exponential in it.
            prefix = 'soft_nms-batched' if name == 'soft' else f'batched_nms-{name}-{agnostic}'
            yield prefix, dict(dets=dets, kept=kept)


def soft_nms_cases():
    for method, offset, ties in itertools.product(('naive', 'linear', 'gaussian'), (0, 1), (False, True)):
        boxes, scores = boxes_and_scores(4, 60, ties)
        dets, kept = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.2, method, offset)
        yield f'soft_nms-{method}-{offset}-{ties}', dict(dets=dets, kept=kept)


def nms_match_cases():
    for threshold, ties in itertools.product((0.3, 0.5), (False, True)):
        boxes, scores = boxes_and_scores(5, 80, ties)
        groups = ops.nms_match(torch.cat([boxes, scores[:, None]], 1), threshold)
        yield f'nms_match-{threshold}-{ties}', dict(
            sizes=torch.tensor([len(group) for group in groups]), members=torch.cat(groups))


def bbox_overlaps_cases():
    boxes, others = boxes_and_scores(6, 30, False)[0], boxes_and_scores(7, 30, False)[0]
    for mode, aligned, offset in itertools.product(('iou', 'iof'), (False, True), (0, 1)):
        yield f'bbox_overlaps-{mode}-{aligned}-{offset}', dict(
            ious=ops.bbox_overlaps(boxes, others, mode, aligned, offset))


def roi_align_cases():
    for aligned, ratio, size in itertools.product((True, False), (0, 2), ((7, 7), (2, 3))):
        draw = draws(8)
        x = tensor(draw.randn(2, 3, 13, 17), grad=True)
        # The last ones lie partly, and wholly, outside; one has no area.
        corners = np.array([[2, 3, 40, 50], [10.5, 8.25, 30, 21], [-20, -9, 12, 15], [60, 30, 90, 80],
                            [200, 200, 260, 300], [20, 20, 20, 20]])
        rois = tensor(np.concatenate([np.array([[0, 1, 0, 1, 0, 1]]).T, corners], 1))
        y = ops.roi_align(x, rois, size, 0.25, ratio, 'avg', aligned)
        y.backward(tensor(draw.randn(*y.shape)))
        yield f'roi_align-{aligned}-{ratio}-{size[0]}x{size[1]}', dict(y=y, grad=x.grad)
    x = tensor(draws(9).randn(1, 2, 6, 5), grad=True)
    y = ops.roi_align(x, tensor(np.zeros((0, 5))), 3)
    y.sum().backward()
    yield 'roi_align-empty', dict(y=y, grad=x.grad)


GEOMETRIES = (dict(stride=1, padding=1, dilation=1, groups=1, deform_groups=1),
              dict(stride=2, padding=2, dilation=2, groups=2, deform_groups=2),
              dict(stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=1, deform_groups=4))


def deform_conv_tensors(seed: int, geometry: dict, kernel=(3, 2)):
    draw = draws(seed)
    x = tensor(draw.randn(2, 4, 9, 8), grad=True)
    weight = tensor(draw.randn(6, 4 // geometry['groups'], *kernel) / 5, grad=True)
    size = torch.nn.functional.conv2d(x, weight, None, geometry['stride'], geometry['padding'], geometry['dilation'],
                                      geometry['groups']).shape[2:]
    taps = geometry['deform_groups'] * kernel[0] * kernel[1]
    offset = tensor(2 * draw.randn(2, 2 * taps, *size), grad=True)
    mask = tensor(draw.rand(2, taps, *size), grad=True)
    return x, offset, mask, weight, tensor(draw.randn(6), grad=True), tensor(draw.randn(2, 6, *size))


def deform_conv_cases():
    for index, geometry in enumerate(GEOMETRIES):
        x, offset, _, weight, _, grad = deform_conv_tensors(10 + index, geometry)
        y = ops.deform_conv2d(x, offset, weight, *geometry.values())
        y.backward(grad)
        yield f'deform_conv2d-{index}', dict(y=y, x=x.grad, offset=offset.grad, weight=weight.grad)


def modulated_deform_conv_cases():
    for (index, geometry), with_bias in itertools.product(enumerate(GEOMETRIES), (True, False)):
        x, offset, mask, weight, bias, grad = deform_conv_tensors(20 + index, geometry)
        y = ops.modulated_deform_conv2d(x, offset, mask, weight, bias if with_bias else None, *geometry.values())
        y.backward(grad)
        leaves = dict(x=x, offset=offset, mask=mask, weight=weight, **(dict(bias=bias) if with_bias else {}))
        yield f'modulated_deform_conv2d-{index}-{with_bias}', dict(y=y, **{key: v.grad for key, v in leaves.items()})


def psamask_cases():
    for kind, size in itertools.product(('collect', 'distribute'), ((5, 3), (3, 7))):
        draw = draws(30)
        x = tensor(draw.randn(2, size[0] * size[1], 4, 5), grad=True)
        y = ops.PSAMask(kind, size)(x)
        y.backward(tensor(draw.randn(*y.shape)))
        yield f'psa_mask-{kind}-{size[0]}x{size[1]}', dict(y=y, grad=x.grad)


if __name__ == '__main__':
    import mmcv._ext
    assert mmcv._ext.__file__.endswith('.so'), f'compiled operators are needed, got {mmcv._ext}'
    np.savez_compressed(FILE, **results())
