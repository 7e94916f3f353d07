"""Predictions drawn on images, from a config and a checkpoint or from an ONNX file, for all three tasks alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.visualization import Visualizer

from ..analysis.inputs import count_channels, displayable, fit_channels
from .drawing import Drawer, enlarge, enlarging_factor
from .exporting import task_of
from .images import image_loader, reads_plain_files, split_loader, test_pipeline
from .onnx_model import OnnxModel
from .predicting import predict


class ModelDemo:
    """Predicts as in testing, by the config's pipeline and model, and draws.

    Args:
        cfg (Config): Config of a classifier, segmentor or detector.
        checkpoint (str): Its checkpoint, path or URL.
        device (str, optional): Where to run; by default a GPU if there is one.
        score_thr (float): Detections below this score are not drawn. Defaults to 0.3.

    Attributes:
        plain_files (bool): Whether the pipeline loads images of the usual formats.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None = None, score_thr: float = 0.3) -> None:
        self.task, self.scope = task_of(cfg), cfg.default_scope
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        loader, rest = split_loader(test_pipeline(cfg))
        self.plain_files = reads_plain_files(loader)
        self._loader = image_loader(cfg, check=False)
        with DefaultScope.overwrite_default_scope(self.scope):
            self._pipeline = Compose([TRANSFORMS.build(transform) for transform in rest])
            self.model, classes, palette = self._build(cfg, checkpoint, device)
        self._channels = count_channels(self.model)
        self._draw = Drawer(self.scope, classes, palette, score_thr, _count_classes(self.model))

    def load(self, path: str | Path) -> np.ndarray:
        """Load an image as the pipeline does, (H, W, C) or (H, W)."""
        return self._loader(path)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        """Predict and draw.

        Args:
            image (np.ndarray): (H, W, C) or (H, W), three channels as BGR.

        Returns:
            tuple[np.ndarray, str]: The drawn image, uint8, RGB, and what was found, in words.

        Raises:
            ValueError: If the image does not have the channels that the model takes.
        """
        fitting = fit_channels(image, self._channels, 'image')
        # As loaders give grey images to the transforms.
        fitting = fitting[..., 0] if fitting.shape[2] == 1 else fitting
        shape = fitting.shape[:2]
        with DefaultScope.overwrite_default_scope(self.scope):
            packed = self._pipeline(dict(img=fitting, img_path='', img_id=0, img_shape=shape, ori_shape=shape))
            sample = predict(self.model, pseudo_collate([packed]))[0]
        return self._draw(displayable(image), sample.cpu())

    def _build(self, cfg: Config, checkpoint: str, device: str) -> tuple[Any, Any, Any]:
        """The model, the names of its classes and their colours, from upstream's inferencers."""
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


class OnnxDemo:
    """Predicts with an exported model in onnxruntime, and draws; of a detector's backbone the feature maps.

    Args:
        path (str): An ONNX file written by ``tools/model_converters/export.py``.

    Attributes:
        plain_files (bool): As :attr:`ModelDemo.plain_files`.
    """

    def __init__(self, path: str) -> None:
        self.model = OnnxModel(path)
        meta = self.model.meta
        self.task = meta['task']
        self.plain_files = reads_plain_files(split_loader(meta['pipeline'])[0])
        self._draw = None if self.task == 'detection' else Drawer(meta['scope'], meta['classes'], meta['palette'])

    def load(self, path: str | Path) -> np.ndarray:
        """As :meth:`ModelDemo.load`."""
        return self.model.load(path)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        """As :meth:`ModelDemo.__call__`."""
        if self._draw is None:
            return self._draw_features(image)
        return self._draw(displayable(image), self.model.predict(image))

    def _draw_features(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        features = self.model.features(image)
        shown = displayable(image)
        enlarged = enlarge(shown, enlarging_factor(shown))[..., ::-1]
        maps = [Visualizer.draw_featmap(torch.from_numpy(feature), enlarged) for feature in features]
        shapes = ', '.join('x'.join(map(str, feature.shape)) for feature in features)
        found = f'no boxes: the file holds the backbone alone, feature maps {shapes}'
        return np.concatenate([enlarged, *maps], 1), found


def _count_classes(model: Any) -> int:
    """How many classes a segmentor or panoptic detector has; 0 of others."""
    counting = getattr(model, 'panoptic_fusion_head', model)
    return getattr(counting, 'num_classes', 0)
