"""Data samples of the three toolboxes drawn on images, by the toolboxes' own visualizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

# Smaller images are enlarged before drawing on them: text has a size of its own.
_SHORT_SIDE = 384
# mmdet's panoptic ids are those of classes and, in steps of this, of their instances.
_INSTANCE_OFFSET = 1000
_VISUALIZERS = dict(mmpretrain='UniversalVisualizer', mmseg='SegLocalVisualizer', mmdet='DetLocalVisualizer')


class Drawer:
    """Draws a data sample, and describes in words what it holds.

    Args:
        scope (str): ``'mmpretrain'``, ``'mmseg'`` or ``'mmdet'``.
        classes (Sequence[str], optional): Their names. Classes without one are called by their number.
        palette (Sequence, optional): Their colours. Classes without one get a fixed one of their own.
        score_thr (float): Instances below this score are not drawn. Defaults to 0.
        num_classes (int): How many classes there are at least. Defaults to 0.
    """

    def __init__(self, scope: str, classes: Sequence[str] | None, palette: Any, score_thr: float = 0.0,
                 num_classes: int = 0) -> None:
        self.scope, self.score_thr = scope, score_thr
        # A dictionary of tasks, for example, names no classes.
        self._names = list(classes) if isinstance(classes, (list, tuple)) else []
        self._colours = [] if palette is None or isinstance(palette, str) else [tuple(colour) for colour in palette]
        self._count = max(num_classes, len(self._names))
        # Not build(): it would make one visualizer for the whole process.
        with VISUALIZERS.switch_scope_and_registry(scope) as registry:
            self._visualizer = registry.get(_VISUALIZERS[scope])()

    def __call__(self, image: np.ndarray, sample: Any) -> tuple[np.ndarray, str]:
        """Draw.

        Args:
            image (np.ndarray): (H, W, 3), uint8, BGR.
            sample (BaseDataElement): What the model predicts, on the CPU.

        Returns:
            tuple[np.ndarray, str]: The image, enlarged if it is small, uint8, RGB, and what was found.
        """
        factor = enlarging_factor(image)
        picture = np.ascontiguousarray(enlarge(image, factor)[..., ::-1])
        if self.scope == 'mmpretrain':
            return self._draw_labels(picture, sample)
        return self._draw_places(picture, sample, factor)

    def _draw_labels(self, picture: np.ndarray, sample: Any) -> tuple[np.ndarray, str]:
        found = self._describe_labels(sample)
        self._visualizer.set_image(picture)
        style = dict(self._visualizer.DEFAULT_TEXT_CFG, size=int(min(picture.shape[:2]) / 32))
        self._visualizer.ax_save.text(8, 8, found.replace('; ', '\n'), **style)
        return self._visualizer.get_image(), found

    def _describe_labels(self, sample: Any) -> str:
        if 'pred_label' not in sample:
            # Of several tasks. Names of classes would be those of one of them.
            unnamed = Drawer(self.scope, None, None)
            tasks = [(name, sample.get(name)) for name in sorted(sample.tasks)]
            return '; '.join(f'{name}: {unnamed._describe_labels(value)}' for name, value in tasks)
        labels = sample.pred_label.flatten()
        if labels.is_floating_point():
            return ', '.join(f'{value:.4g}' for value in labels.tolist())
        scores = sample.pred_score.flatten()
        return ', '.join(f'{self._name(label)} ({float(scores[label]):.3f})' for label in labels.tolist()) or (
            'no label')

    def _draw_places(self, picture: np.ndarray, sample: Any, factor: int) -> tuple[np.ndarray, str]:
        found: list[str] = []
        largest = self._count - 1
        enlarged = type(sample)(metainfo=sample.metainfo)
        for field, value in sample.items():
            if not field.startswith('pred_'):
                continue
            if isinstance(value, InstanceData):
                value = value[value.scores >= self.score_thr]
                found += [f'{self._name(label)} ({score:.2f})' for label, score in zip(
                    value.labels.tolist(), value.scores.tolist())]
                largest = max([largest, *value.labels.tolist()])
                enlarged.set_data({field: _enlarge_instances(value, factor)})
            elif isinstance(value, PixelData):
                maps = {name: torch.as_tensor(data) for name, data in value.items()}
                labels = next(iter(maps.values()))
                if field == 'pred_depth_map':
                    found.append(f'depth {float(labels.min()):.4g} ... {float(labels.max()):.4g}')
                else:
                    # Of binary segmentors they are floats.
                    maps = {name: data.long() for name, data in maps.items()}
                    described, highest = self._describe_map(labels.long(), field == 'pred_panoptic_seg')
                    found += described
                    largest = max(largest, highest)
                enlarged.set_data({field: PixelData(metainfo=value.metainfo, **{
                    name: _repeat(data, factor) for name, data in maps.items()})})
        drawn = self._draw(picture, enlarged, largest + 1)
        if 'pred_sem_seg' in enlarged and self.scope == 'mmseg':
            self._write_names(drawn, enlarged.pred_sem_seg.data[0].numpy())
        return drawn, ', '.join(found) or 'nothing found'

    def _draw(self, picture: np.ndarray, sample: Any, count: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        colours = [tuple(map(int, colour)) for colour in rng.integers(32, 256, (count, 3))]
        colours[:len(self._colours)] = self._colours
        self._visualizer.dataset_meta = dict(classes=[self._name(i) for i in range(count)], palette=colours)
        # mmseg's own labels are cut off at borders, and white on light colours.
        options: dict[str, Any] = dict(with_labels=False) if self.scope == 'mmseg' else dict(
            pred_score_thr=min(self.score_thr, 0) - 1)
        self._visualizer.add_datasample('', picture, sample, draw_gt=False, **options)
        return np.ascontiguousarray(self._visualizer.get_image())

    def _describe_map(self, labels: Tensor, panoptic: bool) -> tuple[list[str], int]:
        """Shares of the classes of a map, and the highest class."""
        classes, counts = torch.unique(labels % _INSTANCE_OFFSET if panoptic else labels, return_counts=True)
        shares = [(label, count / labels.numel()) for label, count in zip(classes.tolist(), counts.tolist())]
        # What belongs to no class has the number after the last.
        known = [(label, share) for label, share in shares if not (panoptic and label == self._count)]
        return ([f'{self._name(label)} {100 * share:.0f} %' for label, share in known],
                max((label for label, _ in known), default=0))

    def _name(self, label: int) -> str:
        return str(self._names[label]) if label < len(self._names) else str(label)

    def _write_names(self, picture: np.ndarray, labels: np.ndarray) -> None:
        """Write the name of every class into the widest place of its regions, white with a black outline, in place."""
        height, width = labels.shape
        for label in np.unique(labels):
            # A border all around keeps that place away from the sides of the picture.
            inside = np.pad(labels == label, 1).astype(np.uint8)
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            text = self._name(int(label))
            (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
            left = int(np.clip(x - text_width // 2, 2, max(width - text_width - 2, 2)))
            bottom = int(np.clip(y + text_height // 2, text_height + 2, height - 3))
            for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                cv2.putText(picture, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)


def enlarging_factor(image: np.ndarray) -> int:
    """How many times as large an image is drawn."""
    return max(1, round(_SHORT_SIDE / min(image.shape[:2])))


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Resize an image (H, W, 3) to (factor * H, factor * W, 3)."""
    height, width = image.shape[:2]
    return image if factor == 1 else mmcv.imresize(image, (width * factor, height * factor))


def _enlarge_instances(instances: InstanceData, factor: int) -> InstanceData:
    enlarged = instances.clone()
    if 'bboxes' in enlarged:
        enlarged.bboxes = enlarged.bboxes * factor
    if 'masks' in enlarged:
        enlarged.masks = _repeat(torch.as_tensor(enlarged.masks), factor)
    return enlarged


def _repeat(maps: Tensor, factor: int) -> Tensor:
    return maps.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
