"""Final predictions of two forms of a model: labels, maps of classes, scores and boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor
from torchvision.ops import box_iou

# Of the pixels so large a share may differ with logits that are equal: ties fall either way.
TIES = 1e-3
# Maps of ids, of binary segmentors as floats.
_MAPS = ('pred_sem_seg', 'pred_panoptic_seg')


@dataclass
class Detections:
    """Final detections before and after, over all images. Not judged: a tie may fall either way in NMS.

    Attributes:
        before (int): Number of detections of the reference.
        after (int): Number of detections of the other model.
        matched (int): Those of the reference for which the other has one of the same class with an IoU above 0.9.
        score_error (float): Largest difference of the scores of matched ones.
    """

    before: int = 0
    after: int = 0
    matched: int = 0
    score_error: float = 0.0

    def add(self, expected: Any, got: Any) -> None:
        """Add one image's ``pred_instances`` of both."""
        self.before += len(expected)
        self.after += len(got)
        if not len(expected) or not len(got):
            return
        overlap = box_iou(expected.bboxes, got.bboxes) * (expected.labels[:, None] == got.labels)
        best, index = overlap.max(1)
        close = best > 0.9
        self.matched += int(close.sum())
        if close.any():
            self.score_error = max(self.score_error, (expected.scores - got.scores[index])[close].abs().max().item())


@dataclass
class Predictions:
    """Final predictions of two forms of a model, over all images.

    Attributes:
        images (int): How many were compared.
        decisions (int): Labels and pixels of maps. Of each class of each image it is one whether it is predicted.
        equal (int): Those that are the same.
        score_error (float): Largest difference of scores and of other predicted numbers, as a share of the largest
            value where that is above 1; infinite if one form predicts what the other does not.
        detections (Detections | None): Boxes, where there are any.
    """

    images: int = 0
    decisions: int = 0
    equal: int = 0
    score_error: float = 0.0
    detections: Detections | None = None
    _panoptic: bool = field(default=False, repr=False)

    @property
    def differing(self) -> float:
        """The share of decisions that differ."""
        return 1 - self.equal / self.decisions if self.decisions else 0.0

    @property
    def error(self) -> float:
        """The largest of the share of differing decisions and ``score_error``."""
        return max(self.differing, self.score_error)

    @property
    def has_instances(self) -> bool:
        """Whether instances are found, of which ties in NMS decide: these predictions are not to be judged."""
        return self.detections is not None or self._panoptic

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        numbers = {name: getattr(self, name) for name in ('decisions', 'equal', 'score_error')}
        return dict(predictions=numbers, detections=self.detections and vars(self.detections))

    def __str__(self) -> str:
        parts = []
        if self.decisions:
            parts.append(f'{self.decisions - self.equal} of {self.decisions} decisions differ')
        parts.append(f'scores by at most {self.score_error:.1e}')
        found = [f'final predictions: {", ".join(parts)}'] if self.decisions or self.score_error else []
        if self.detections is not None:
            each = self.detections
            found.append(f'detections: {each.before} before, {each.after} after, {each.matched} the same with scores '
                         f'that differ by at most {each.score_error:.1e}')
        return '; '.join(found)

    def add(self, expected: BaseDataElement, got: BaseDataElement) -> None:
        """Add one image's data samples of both."""
        self.images += 1
        self._panoptic |= 'pred_panoptic_seg' in expected
        if 'pred_instances' in expected:
            self.detections = self.detections or Detections()
            self.detections.add(expected.pred_instances, got.pred_instances)
        before, after = dict(_predicted(expected)), dict(_predicted(got))
        if {name: value.shape for name, value in before.items()} != {
                name: value.shape for name, value in after.items()}:
            self.score_error = float('inf')
        for name in before.keys() & after.keys():
            if self.score_error != float('inf'):
                self._add(before[name], after[name])

    def _add(self, expected: Tensor, got: Tensor) -> None:
        if not expected.is_floating_point():
            self.decisions += expected.numel()
            self.equal += int((expected == got).sum())
        elif expected.numel():
            error = (expected - got).abs().double().nan_to_num(float('inf'), float('inf')).max().item()
            self.score_error = max(self.score_error, error / max(expected.abs().max().item(), 1.0))


def _predicted(sample: BaseDataElement, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    """Decisions as integers or booleans and scores as floats, by name; instances aside."""
    for name, value in sample.items():
        if name in _MAPS:
            value = value.get('data', value.get('sem_seg'))
            yield prefix + name, value.long()
        elif name == 'pred_label' and not value.is_floating_point() and 'pred_score' in sample:
            # Of several labels the order is not a decision, and the number may differ.
            absent = torch.zeros_like(sample.pred_score, dtype=torch.bool)
            yield prefix + name, absent.index_fill(0, value.flatten(), True)
        elif name.startswith('pred_') and name != 'pred_instances':
            value = value.get('data') if isinstance(value, BaseDataElement) else value
            if isinstance(value, Tensor):
                yield prefix + name, value
        elif isinstance(value, BaseDataElement) and not name.startswith(('gt_', 'pred_', 'ignored_', 'proposals')):
            # A task of several.
            yield from _predicted(value, f'{prefix}{name}.')
