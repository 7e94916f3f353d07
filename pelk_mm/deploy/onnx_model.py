"""Exported models in onnxruntime."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS, DefaultScope

from ..install_hints import require
from .exporting import TASKS


class OnnxModel:
    """An ONNX file that :func:`pelk_mm.deploy.save_onnx` wrote, on the CPU.

    Args:
        path (str | Path): The file.
        threads (int, optional): Threads of one operation. By default onnxruntime's choice, one per core.

    Attributes:
        meta (dict): Task, classes, palette and pipeline, see :func:`pelk_mm.deploy.describe`.
        outputs (list[str]): Names of the outputs.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If onnxruntime is missing.
        ValueError: If the file was not written by this package.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f'no such ONNX file: {path}')
        require('onnxruntime', by='running ONNX files')
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        meta = self._session.get_modelmeta().custom_metadata_map.get('pelk_mm')
        if meta is None:
            raise ValueError(f'{path} has no metadata of pelk_mm: export it with tools/model_converters/export.py')
        self.meta = _read_meta(meta, path)
        self.outputs = [output.name for output in self._session.get_outputs()]
        with DefaultScope.overwrite_default_scope(self.meta['scope']):
            _refuse_strangers(self.meta['pipeline'], path)
            # The image is there already.
            self._pipeline = Compose([
                TRANSFORMS.build(transform) for transform in self.meta['pipeline']
                if not transform['type'].endswith('LoadImageFromFile')
            ])

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run the graph.

        Args:
            images (np.ndarray): (N, 3, H, W), float32, 0 ... 255, RGB.

        Returns:
            list[np.ndarray]: In the order of ``outputs``.
        """
        return self._session.run(None, {'image': images})

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Bring a picture to the size that the model was tested at.

        Args:
            image (np.ndarray): (H, W, 3), uint8, BGR.

        Returns:
            np.ndarray: (1, 3, H', W'), float32, RGB.
        """
        shape = image.shape[:2]
        with DefaultScope.overwrite_default_scope(self.meta['scope']):
            packed = self._pipeline(dict(img=image, img_shape=shape, ori_shape=shape))
        return packed['inputs'].numpy()[None, ::-1].astype(np.float32)

    def classify(self, image: np.ndarray) -> np.ndarray:
        """Probabilities (classes, ) of a picture (H, W, 3), uint8, BGR."""
        logits = self.run(self.prepare(image))[0][0].astype(np.float64)
        scores = np.exp(logits - logits.max())
        return scores / scores.sum()

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Class (H, W) of every pixel of a picture (H, W, 3), uint8, BGR."""
        logits = self.run(self.prepare(image))[0][0]
        height, width = image.shape[:2]
        if logits.shape[1:] != (height, width):
            logits = np.stack([mmcv.imresize(plane, (width, height)) for plane in logits])
        return logits.argmax(0)

    def features(self, image: np.ndarray) -> list[np.ndarray]:
        """Feature maps (C, h, w) of a picture (H, W, 3), uint8, BGR."""
        return [feature[0] for feature in self.run(self.prepare(image))]


def _read_meta(text: str, path: str | Path) -> dict[str, Any]:
    """What :func:`pelk_mm.deploy.describe` wrote, its pipeline as a list of dicts."""
    try:
        meta = json.loads(text)
        if meta['task'] != TASKS[meta['scope']]:
            raise ValueError(f'{meta["scope"]} has the task {meta["task"]}')
        meta['pipeline'] = ast.literal_eval(meta['pipeline'])
        if not all(isinstance(transform['type'], str) for transform in meta['pipeline']):
            raise ValueError('its transforms must have names')
    except (KeyError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f'{path} has damaged metadata of pelk_mm ({type(error).__name__}: {error}): export it again '
                         'with tools/model_converters/export.py') from error
    return meta


def _refuse_strangers(node: Any, path: str | Path) -> None:
    """Let a file name registered transforms alone: MMEngine would call any function by its dotted name."""
    if isinstance(node, dict):
        kind = node.get('type')
        if kind is not None and not _is_registered(kind) or node.get('_scope_', 'mmengine') not in ('mmengine', *TASKS):
            raise ValueError(f'{path} names {kind!r} in its pipeline, which is no registered transform, and is not '
                             'called: the file was not written by tools/model_converters/export.py')
        node = list(node.values())
    for child in node if isinstance(node, (list, tuple)) else ():
        _refuse_strangers(child, path)


def _is_registered(name: Any) -> bool:
    scope, _, bare = str(name).rpartition('.')
    if scope not in ('', 'mmengine', 'pelk_mm', *TASKS) or not bare.replace('/', '').isidentifier():
        return False
    with TRANSFORMS.switch_scope_and_registry(None) as registry:
        registry.import_from_location()
        known = [each.module_dict for each in (TRANSFORMS, *TRANSFORMS.children.values())]
        # Of other names a look-up would import what they name.
        found = registry.get(str(name)) if any(bare in names for names in known) else None
    return any(found is transform for names in known for transform in names.values())
