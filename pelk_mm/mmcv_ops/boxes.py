"""Overlaps and suppression of boxes, for :mod:`pelk_mm.mmcv_ops.extension`. A box is x1, y1, x2, y2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..install_hints import require


def vision_ops() -> Any:
    """Return torchvision's operators. It is imported here, as only their callers need it."""
    require('torchvision', by='mmcv.ops without its compiled operators')
    import torchvision  # noqa: F401
    return torch.ops.torchvision


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Suppress boxes (N, 4) that overlap one of a higher score (N, ) by more than a threshold.

    ``offset`` is 0, or 1 for boxes whose last corner is part of them.

    Returns:
        Tensor: Indices of the boxes kept, by descending score, int64.
    """
    boxes = boxes + boxes.new_tensor([0, 0, offset, offset]) if offset else boxes
    # mmcv compares in fp32, torchvision in fp64, where 0.1 is another number.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    # As mmcv sorts: the order of equal scores may differ from torchvision's stable sort.
    order = scores.sort(descending=True)[1]
    return order[vision_ops().nms(boxes[order], scores[order], threshold)]


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float,
            method: int, offset: int) -> Tensor:
    """Lower the scores (N, ) of boxes (N, 4) that overlap one of a higher score (Soft-NMS, arXiv:1704.04503).

    Args:
        boxes (Tensor): As in :func:`nms`.
        scores (Tensor): As in :func:`nms`.
        dets (Tensor): Written: the boxes kept, with their new scores, shape (N, 5).
        iou_threshold (float): Overlap from which methods 0 and 1 act.
        sigma (float): Width of the Gaussian of method 2.
        min_score (float): Boxes whose score falls below are dropped.
        method (int): 0 drops, 1 is linear, 2 is Gaussian.
        offset (int): As in :func:`nms`.

    Returns:
        Tensor: Indices of the boxes kept, in the order of ``dets``, int64.
    """
    order = torch.arange(len(boxes), device=boxes.device)
    scores = scores.clone()
    done = 0
    while done < len(order):
        # The best box goes to the front. The box swapped with it decides ties, so this is mmcv's swap.
        best = done + int(scores[order[done:]].argmax())
        order[[done, best]] = order[[best, done]]
        first, rest = order[done], order[done + 1:]
        overlaps = _pairwise_overlaps(boxes[first, None], boxes[rest], offset)[0]
        if method == 2:
            weight = torch.exp(-overlaps * overlaps / sigma)
        else:
            weight = torch.where(overlaps >= iou_threshold, 1 - overlaps if method == 1 else 0.0, 1.0)
        scores[rest] *= weight
        order = torch.cat([order[:done + 1], _drop(rest, scores[rest] < min_score)])
        done += 1
    dets[:len(order), :4] = boxes[order]
    dets[:len(order), 4] = scores[order]
    return order


def _drop(values: Tensor, drop: Tensor) -> Tensor:
    """Drop values; values from the end take their places, as in mmcv's loop."""
    count = int((~drop).sum())
    front, back = values[:count].clone(), values[count:]
    front[drop[:count]] = back[~drop[count:]].flip(0)
    return front


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes with scores (N, 5) by the box that suppresses them, which they overlap by at least the threshold.

    Returns:
        list[list[int]]: For each box kept, by descending score: its index, then those of the boxes it suppresses.
    """
    left = dets[:, 4].sort(descending=True)[1]
    groups = []
    while len(left):
        overlaps = _pairwise_overlaps(dets[left[:1], :4], dets[left[1:], :4])[0]
        near = overlaps >= iou_threshold
        groups.append([int(left[0]), *left[1:][near].tolist()])
        left = left[1:][~near]
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write into ``ious`` (M, N) the intersections of boxes (M, 4) and (N, 4) over the union; in mode 1 over the first.

    If aligned, box i is compared with box i only, and ``ious`` has the shape (M, ).
    """
    if aligned:
        bboxes1, bboxes2 = bboxes1[:, None], bboxes2[:, None]
    overlaps = _pairwise_overlaps(bboxes1, bboxes2, offset, over_first=mode == 1)
    ious.copy_(overlaps.view_as(ious))


def _pairwise_overlaps(boxes1: Tensor, boxes2: Tensor, offset: int = 0, over_first: bool = False) -> Tensor:
    """Return overlaps (..., M, N) of each of (..., M, 4) with each of (..., N, 4), in mmcv's order of operations."""
    corner = torch.maximum(boxes1[..., :, None, :2], boxes2[..., None, :, :2])
    opposite = torch.minimum(boxes1[..., :, None, 2:], boxes2[..., None, :, 2:])
    common = (opposite - corner + offset).clamp(min=0).prod(-1)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (boxes1, boxes2))
    return common / (area1[..., None] if over_first else area1[..., None] + area2[..., None, :] - common)
