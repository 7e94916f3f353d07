"""Predictions drawn on pictures, from a config and a checkpoint or from an ONNX file, for all three tasks alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer

from .exporting import task_of
from .onnx_model import OnnxModel

# Smaller pictures are enlarged before drawing on them: text has a size of its own.
_SHORT_SIDE = 384


class ModelDemo:
    """Predicts with MMEngine's inferencer of the config's toolbox, and draws.

    Args:
        cfg (Config): Config of a classifier, segmentor or detector.
        checkpoint (str): Its checkpoint, path or URL.
        device (str, optional): Where to run; by default a GPU if there is one.
        score_thr (float): Detections below this score are not drawn. Defaults to 0.3.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None = None, score_thr: float = 0.3) -> None:
        self.task, self.scope, self.score_thr = task_of(cfg), cfg.default_scope, score_thr
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        with DefaultScope.overwrite_default_scope(self.scope):
            self.inferencer = self._build(cfg, checkpoint, device)
        self._draw = _drawer(self.scope, *self._dataset_meta(), score_thr)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        """Predict and draw.

        Args:
            image (np.ndarray): (H, W, 3), uint8, BGR.

        Returns:
            tuple[np.ndarray, str]: The drawn picture, uint8, RGB, and what was found, in words.
        """
        with DefaultScope.overwrite_default_scope(self.scope), torch.no_grad():
            data = next(iter(self.inferencer.preprocess([image], batch_size=1)))
            # mmdet's inferencer hands the picture on too.
            sample = self.inferencer.forward(data[1] if self.task == 'detection' else data)[0]
        return self._draw(image, sample.cpu())

    def _build(self, cfg: Config, checkpoint: str, device: str) -> Any:
        if self.task == 'classification':
            from mmpretrain.apis import ImageClassificationInferencer
            return ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)
        if self.task == 'segmentation':
            from mmseg.apis import MMSegInferencer
            inferencer = MMSegInferencer(cfg, weights=checkpoint, device=device)
            # No argument of upstream's.
            inferencer.show_progress = False
            return inferencer
        from mmdet.apis import DetInferencer
        return DetInferencer(cfg, weights=checkpoint, device=device, show_progress=False)

    def _dataset_meta(self) -> tuple[Any, Any]:
        if self.task == 'classification':
            return self.inferencer.classes, None
        meta = self.inferencer.model.dataset_meta
        return meta.get('classes'), meta.get('palette')


class OnnxDemo:
    """Predicts with an exported model in onnxruntime, and draws; of a detector's backbone the feature maps.

    Args:
        path (str): An ONNX file written by ``tools/model_converters/export.py``.
    """

    def __init__(self, path: str) -> None:
        self.model = OnnxModel(path)
        meta = self.model.meta
        self.task = meta['task']
        self._draw = None if self.task == 'detection' else _drawer(meta['scope'], meta['classes'], meta['palette'], 0.0)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        """As :meth:`ModelDemo.__call__`."""
        if self._draw is None:
            return self._draw_features(image)
        if self.task == 'classification':
            from mmpretrain.structures import DataSample
            scores = torch.from_numpy(self.model.classify(image))
            return self._draw(image, DataSample().set_pred_score(scores).set_pred_label(scores.argmax()))
        from mmseg.structures import SegDataSample
        labels = torch.from_numpy(self.model.segment(image))
        return self._draw(image, SegDataSample(pred_sem_seg=PixelData(data=labels[None])))

    def _draw_features(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        features = self.model.features(image)
        enlarged = _enlarge(image, _factor(image))[..., ::-1]
        maps = [Visualizer.draw_featmap(torch.from_numpy(feature), enlarged) for feature in features]
        shapes = ', '.join('x'.join(map(str, feature.shape)) for feature in features)
        found = f'no boxes: the file holds the backbone alone, feature maps {shapes}'
        return np.concatenate([enlarged, *maps], 1), found


def _drawer(scope: str, classes: Any, palette: Any,
            score_thr: float) -> Callable[[np.ndarray, Any], tuple[np.ndarray, str]]:
    """A function that draws a data sample of the toolbox on a picture and tells what it shows."""
    kind = dict(mmpretrain='UniversalVisualizer', mmseg='SegLocalVisualizer', mmdet='DetLocalVisualizer')[scope]
    # Not build(): it would make one visualizer for the whole process.
    with VISUALIZERS.switch_scope_and_registry(scope) as registry:
        visualizer = registry.get(kind)()
    visualizer.dataset_meta = dict(classes=classes, palette=palette)

    def name(label: int) -> str:
        return str(classes[label]) if classes else str(label)

    def draw(image: np.ndarray, sample: Any) -> tuple[np.ndarray, str]:
        factor = _factor(image)
        picture = np.ascontiguousarray(_enlarge(image, factor)[..., ::-1])
        if scope == 'mmpretrain':
            visualizer.visualize_cls(picture, sample, classes=classes, draw_gt=False)
            label = int(sample.pred_label)
            return visualizer.get_image(), f'{name(label)} ({float(sample.pred_score[label]):.3f})'
        if scope == 'mmseg':
            labels = sample.pred_sem_seg.data
            enlarged_labels = labels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
            sample.pred_sem_seg = PixelData(data=enlarged_labels)
            # Its own labels are cut off at borders, and white on light colours.
            visualizer.add_datasample('', picture, sample, draw_gt=False, with_labels=False)
            drawn = np.ascontiguousarray(visualizer.get_image())
            _write_names(drawn, enlarged_labels[0].numpy(), name)
            counts = torch.bincount(labels.flatten()).double() / labels.numel()
            shares = [f'{name(label)} {100 * share:.0f} %' for label, share in enumerate(counts.tolist()) if share]
            return drawn, ', '.join(shares)
        found = sample.pred_instances
        found = found[found.scores >= score_thr]
        enlarged = InstanceData(labels=found.labels, scores=found.scores, bboxes=found.bboxes * factor)
        if 'masks' in found:
            enlarged.masks = found.masks.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        sample.pred_instances = enlarged
        visualizer.add_datasample('', picture, sample, draw_gt=False, pred_score_thr=score_thr)
        boxes = [f'{name(label)} ({score:.2f})' for label, score in zip(found.labels.tolist(), found.scores.tolist())]
        return visualizer.get_image(), ', '.join(boxes) or 'nothing found'

    return draw


def _write_names(picture: np.ndarray, labels: np.ndarray, name: Callable[[int], str]) -> None:
    """Write the name of every class into the widest place of its regions, white with a black outline, in place."""
    height, width = labels.shape
    for label in np.unique(labels):
        # A border all around keeps that place away from the sides of the picture.
        inside = np.pad(labels == label, 1).astype(np.uint8)
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        text = name(int(label))
        (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        left = int(np.clip(x - text_width // 2, 2, max(width - text_width - 2, 2)))
        bottom = int(np.clip(y + text_height // 2, text_height + 2, height - 3))
        for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(picture, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)


def _factor(image: np.ndarray) -> int:
    return max(1, round(_SHORT_SIDE / min(image.shape[:2])))


def _enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    height, width = image.shape[:2]
    return image if factor == 1 else mmcv.imresize(image, (width * factor, height * factor))
