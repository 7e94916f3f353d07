"""Predictions drawn on images by the toolboxes' own visualizers, from a config and a checkpoint or an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer
from torch import Tensor

from ..analysis.inputs import count_channels, displayable
from .export import get_test_pipeline, task_of
from .inference import ExportedModel, ImagePipeline, predict

# Smaller images are enlarged before drawing on them: text has a size of its own.
_SHORT_SIDE = 384
# mmdet's panoptic ids are those of classes and, in steps of this, of their instances.
_INSTANCE_OFFSET = 1000
_VISUALIZERS = dict(mmpretrain='UniversalVisualizer', mmseg='SegLocalVisualizer', mmdet='DetLocalVisualizer')


class ModelDemo:
    """Predict as in testing, by the config's pipeline and model, and draw.

    Args:
        cfg (Config): Config of a classifier, segmentor or detector.
        checkpoint (str): Its checkpoint, path or URL.
        device (str, optional): Where to run; by default a GPU if there is one.
        score_thr (float): Detections below this score are not drawn. Defaults to 0.3.

    Attributes:
        pipeline (ImagePipeline): The test pipeline, which loads the images.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None = None, score_thr: float = 0.3) -> None:
        self.task = task_of(cfg)
        self.pipeline = ImagePipeline(get_test_pipeline(cfg), cfg.default_scope)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.model, classes, palette = self._build(
                cfg, checkpoint, device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        self._channels = count_channels(self.model)
        # Segmentors and panoptic detectors may have more classes than names.
        count = getattr(getattr(self.model, 'panoptic_fusion_head', self.model), 'num_classes', 0)
        self._draw = Drawer(cfg.default_scope, classes, palette, score_thr, count)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        """Predict and draw on an image (H, W, C) or (H, W), three channels as BGR.

        Returns:
            tuple[np.ndarray, str]: The drawn image, uint8, RGB, and a description of what was found.

        Raises:
            ValueError: If the image does not have the channels that the model takes.
        """
        batch = pseudo_collate([self.pipeline.prepare(image, self._channels)])
        with DefaultScope.overwrite_default_scope(self.pipeline.scope):
            sample = predict(self.model, batch)[0]
        return self._draw(displayable(image), sample.cpu())

    def _build(self, cfg: Config, checkpoint: str, device: str) -> tuple[Any, Any, Any]:
        """Return the model, the names of its classes and their colours, from upstream's inferencers."""
        if self.task == 'classification':
            from mmpretrain.apis import ImageClassificationInferencer
            inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)
            return inferencer.model, inferencer.classes, None
        if self.task == 'segmentation':
            from mmseg.apis import MMSegInferencer
            model = MMSegInferencer(cfg, weights=checkpoint, device=device).model
        else:
            from mmdet.apis import DetInferencer
            model = DetInferencer(cfg, weights=checkpoint, device=device, show_progress=False).model
        return model, model.dataset_meta.get('classes'), model.dataset_meta.get('palette')


class ExportedDemo:
    """Predict with an exported file ``.onnx`` or ``.xml``, and draw, of a detector's backbone the feature maps.

    Attributes:
        pipeline (ImagePipeline): The test pipeline, which loads the images.
    """

    def __init__(self, path: str) -> None:
        self.model = ExportedModel(path)
        meta, self.pipeline = self.model.meta, self.model.pipeline
        self._draw = None if meta['task'] == 'detection' else Drawer(meta['scope'], meta['classes'], meta['palette'])

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        """Predict and draw as :meth:`ModelDemo.__call__`."""
        if self._draw is not None:
            return self._draw(displayable(image), self.model.predict(image))
        features = self.model.features(image)
        enlarged = _enlarge(displayable(image))[0]
        maps = [Visualizer.draw_featmap(torch.from_numpy(feature), enlarged) for feature in features]
        shapes = ', '.join('x'.join(map(str, feature.shape)) for feature in features)
        found = f'no boxes: the file holds only the backbone, feature maps {shapes}'
        return np.concatenate([enlarged, *maps], 1), found


class Drawer:
    """Draw a data sample, and describe its content in words.

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
        # Not build(): it would make one visualizer for the process.
        with VISUALIZERS.switch_scope_and_registry(scope) as registry:
            self._visualizer = registry.get(_VISUALIZERS[scope])()

    def __call__(self, image: np.ndarray, sample: Any) -> tuple[np.ndarray, str]:
        """Draw a prediction, on the CPU, on an image (H, W, 3), uint8, BGR.

        Returns:
            tuple[np.ndarray, str]: The image, enlarged if it is small, uint8, RGB, and what was found.
        """
        canvas, factor = _enlarge(image)
        if self.scope != 'mmpretrain':
            return self._draw_places(canvas, sample, factor)
        found = self._describe_labels(sample)
        self._visualizer.set_image(canvas)
        style = dict(self._visualizer.DEFAULT_TEXT_CFG, size=int(min(canvas.shape[:2]) / 32))
        self._visualizer.ax_save.text(8, 8, found.replace('; ', '\n'), **style)
        return self._visualizer.get_image(), found

    def _describe_labels(self, sample: Any) -> str:
        if 'pred_label' not in sample:
            # Of several tasks. Names of classes would be those of one of them.
            unnamed = Drawer(self.scope, None, None)
            return '; '.join(f'{name}: {unnamed._describe_labels(sample.get(name))}' for name in sorted(sample.tasks))
        labels = sample.pred_label.flatten()
        if labels.is_floating_point():
            return ', '.join(f'{value:.4g}' for value in labels.tolist())
        scores = sample.pred_score.flatten()
        found = [f'{self._name(label)} ({float(scores[label]):.3f})' for label in labels.tolist()]
        return ', '.join(found) or 'no label'

    def _draw_places(self, canvas: np.ndarray, sample: Any, factor: int) -> tuple[np.ndarray, str]:
        found: list[str] = []
        largest = self._count - 1
        enlarged = type(sample)(metainfo=sample.metainfo)
        for field, value in sample.items():
            if not field.startswith('pred_'):
                continue
            if isinstance(value, InstanceData):
                value = value[value.scores >= self.score_thr]
                labels = value.labels.tolist()
                found += [f'{self._name(label)} ({score:.2f})' for label, score in zip(labels, value.scores.tolist())]
                largest = max([largest, *labels])
                enlarged.set_data({field: _enlarge_instances(value, factor)})
            elif isinstance(value, PixelData):
                maps = {name: torch.as_tensor(data) for name, data in value.items()}
                first = next(iter(maps.values()))
                if field == 'pred_depth_map':
                    found.append(f'depth {float(first.min()):.4g} ... {float(first.max()):.4g}')
                else:
                    # Of binary segmentors they are floats.
                    maps = {name: data.long() for name, data in maps.items()}
                    shares = self._measure_shares(first.long(), field == 'pred_panoptic_seg')
                    found += [f'{self._name(label)} {100 * share:.0f} %' for label, share in shares.items()]
                    largest = max([largest, 0, *shares])
                maps = {name: _repeat(data, factor) for name, data in maps.items()}
                enlarged.set_data({field: PixelData(metainfo=value.metainfo, **maps)})
        drawn = self._draw(canvas, enlarged, largest + 1)
        if 'pred_sem_seg' in enlarged and self.scope == 'mmseg':
            self._write_names(drawn, enlarged.pred_sem_seg.data[0].numpy())
        return drawn, ', '.join(found) or 'nothing found'

    def _draw(self, canvas: np.ndarray, sample: Any, count: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        colours = [tuple(map(int, colour)) for colour in rng.integers(32, 256, (count, 3))]
        colours[:len(self._colours)] = self._colours
        self._visualizer.dataset_meta = dict(classes=[self._name(i) for i in range(count)], palette=colours)
        # mmseg's own labels are cut off at borders, and white on light colours.
        options: dict[str, Any] = dict(with_labels=False) if self.scope == 'mmseg' else dict(
            pred_score_thr=min(self.score_thr, 0) - 1)
        self._visualizer.add_datasample('', canvas, sample, draw_gt=False, **options)
        return np.ascontiguousarray(self._visualizer.get_image())

    def _measure_shares(self, labels: Tensor, panoptic: bool) -> dict[int, float]:
        classes, counts = torch.unique(labels % _INSTANCE_OFFSET if panoptic else labels, return_counts=True)
        shares = {label: count / labels.numel() for label, count in zip(classes.tolist(), counts.tolist())}
        if panoptic:
            # Pixels of no class have the number after the last.
            shares.pop(self._count, None)
        return shares

    def _name(self, label: int) -> str:
        return str(self._names[label]) if label < len(self._names) else str(label)

    def _write_names(self, canvas: np.ndarray, labels: np.ndarray) -> None:
        """Write the name of every class into the widest place of its regions, white with a black outline, in place."""
        height, width = labels.shape
        for label in np.unique(labels):
            # A border all around keeps that place away from the sides of the image.
            inside = np.pad(labels == label, 1).astype(np.uint8)
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            text = self._name(int(label))
            (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
            left = int(np.clip(x - text_width // 2, 2, max(width - text_width - 2, 2)))
            bottom = int(np.clip(y + text_height // 2, text_height + 2, height - 3))
            for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                cv2.putText(canvas, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)


def _enlarge(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Turn an image (H, W, 3), BGR, into a canvas (factor * H, factor * W, 3), RGB; and the factor."""
    height, width = image.shape[:2]
    factor = max(1, round(_SHORT_SIDE / min(height, width)))
    enlarged = image if factor == 1 else mmcv.imresize(image, (width * factor, height * factor))
    return np.ascontiguousarray(enlarged[..., ::-1]), factor


def _enlarge_instances(instances: InstanceData, factor: int) -> InstanceData:
    enlarged = instances.clone()
    if 'bboxes' in enlarged:
        enlarged.bboxes = enlarged.bboxes * factor
    if 'masks' in enlarged:
        enlarged.masks = _repeat(torch.as_tensor(enlarged.masks), factor)
    return enlarged


def _repeat(maps: Tensor, factor: int) -> Tensor:
    return maps.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
