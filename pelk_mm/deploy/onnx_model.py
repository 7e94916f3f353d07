"""Exported models in onnxruntime."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope, Registry

from ..analysis.inputs import fit_channels
from ..analysis.model_building import build_without_weights
from ..install_hints import require
from .exporting import TASKS
from .images import split_loader
from .predicting import exported_network, predict


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
        self._path = path
        loader, rest = split_loader(self.meta['pipeline'])
        with DefaultScope.overwrite_default_scope(self.meta['scope']):
            _refuse_strangers(self.meta['pipeline'], path, TRANSFORMS)
            self._load = Compose(loader and [TRANSFORMS.build(loader)])
            self._pipeline = Compose([TRANSFORMS.build(transform) for transform in rest])
        self._model: Any = None

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run the graph.

        Args:
            images (np.ndarray): (N, C, H, W), float32, values as files hold them; three channels are RGB.

        Returns:
            list[np.ndarray]: In the order of ``outputs``.
        """
        return self._session.run(None, {'image': images})

    def run_tensors(self, images: torch.Tensor) -> list[torch.Tensor]:
        """As :meth:`run`, from and to tensors on the CPU."""
        return [torch.from_numpy(output) for output in self.run(np.ascontiguousarray(images.numpy(), np.float32))]

    def load(self, path: str | Path) -> np.ndarray:
        """Load an image (H, W, C) as the model's test pipeline does, three channels as BGR."""
        if not self._load.transforms:
            raise ValueError(f'{self._path} has no transform in its pipeline that loads images')
        with DefaultScope.overwrite_default_scope(self.meta['scope']):
            return self._load(dict(img_path=str(path)))['img']

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Bring an image to the size that the model was tested at.

        Args:
            image (np.ndarray): (H, W, C) or (H, W), three channels as BGR, as :meth:`load` returns it.

        Returns:
            np.ndarray: (1, C, H', W'), float32, three channels as RGB.

        Raises:
            ValueError: If the image does not have the channels that the model takes.
        """
        packed = self._pack(image)['inputs'].numpy()[None]
        return np.ascontiguousarray(packed[:, ::-1] if packed.shape[1] == 3 else packed, np.float32)

    def predict(self, image: np.ndarray) -> Any:
        """Return the data sample that the model's own code makes of an image, as in testing.

        Args:
            image (np.ndarray): As for :meth:`prepare`.

        Returns:
            DataSample | SegDataSample: With ``pred_label`` and ``pred_score``, or with ``pred_sem_seg``; one for each
            task if the head has several.

        Raises:
            ValueError: If the image does not have the channels that the model takes, or the file holds the backbone of
                a detector, whose heads are not in it.
        """
        return self.predict_batch(pseudo_collate([self._pack(image)]))[0]

    def predict_batch(self, batch: dict) -> list:
        """As :meth:`predict`, of images that went through the test pipeline, as data loaders collate them."""
        if self.meta['task'] == 'detection':
            raise ValueError(f'{self._path} holds the backbone of a detector, which predicts nothing: use features()')
        model = self._rules()
        # The scope is for what a model's code builds as it runs.
        with DefaultScope.overwrite_default_scope(self.meta['scope']), exported_network(
                model, self.meta['task'], self.run_tensors, self.meta['channels']):
            return predict(model, batch)

    def classify(self, image: np.ndarray) -> np.ndarray:
        """Return the scores (classes, ) that the head gives an image, as for :meth:`prepare`.

        Raises:
            ValueError: If there are several heads; :meth:`predict` returns the scores of all.
        """
        self._expect('classification', 'classify()')
        if len(self.outputs) > 1:
            raise ValueError(f'classify() needs a model with one head, got the outputs {self.outputs}: use predict()')
        sample = self.predict(image)
        return (sample if 'pred_score' in sample else sample.get(self.outputs[0])).pred_score.numpy()

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Return the class (H, W) that the model predicts for every pixel of an image, as for :meth:`prepare`.

        Where it slides a window over the image in testing, so it does here.
        """
        self._expect('segmentation', 'segment()')
        sample = self.predict(image)
        if 'pred_sem_seg' not in sample:
            raise ValueError(f'segment() needs a model that predicts classes, this one gives {sorted(sample.keys())}: '
                             'use predict()')
        return sample.pred_sem_seg.data[0].long().numpy()

    def features(self, image: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for an image as the graph gives them, the feature maps (C, h, w) of a backbone."""
        return [feature[0] for feature in self.run(self.prepare(image))]

    def _expect(self, task: str, method: str) -> None:
        if self.meta['task'] != task:
            raise ValueError(f'{method} is for {task}, {self._path} is of {self.meta["task"]}')

    def _pack(self, image: np.ndarray) -> dict:
        image = fit_channels(image, self.meta['channels'], 'image')
        # As loaders give grey images to the transforms.
        image = image[..., 0] if image.shape[2] == 1 else image
        shape = image.shape[:2]
        with DefaultScope.overwrite_default_scope(self.meta['scope']):
            return self._pipeline(dict(img=image, img_path='', img_id=0, img_shape=shape, ori_shape=shape))

    def _rules(self) -> Any:
        if self.meta['model'] is None:
            raise ValueError(f'{self._path} does not hold the head that decides: export it again with '
                             'tools/model_converters/export.py, or use run()')
        if self._model is None:
            with DefaultScope.overwrite_default_scope(self.meta['scope']):
                _refuse_strangers(self.meta['model'], self._path, MODELS)
            cfg = Config(dict(model=self.meta['model'], default_scope=self.meta['scope']))
            self._model = build_without_weights(cfg)
        return self._model


def _read_meta(text: str, path: str | Path) -> dict[str, Any]:
    """What :func:`pelk_mm.deploy.describe` wrote, its pipeline as a list of dicts."""
    try:
        meta = json.loads(text)
        if meta['task'] != TASKS[meta['scope']]:
            raise ValueError(f'{meta["scope"]} has the task {meta["task"]}')
        meta['pipeline'] = ast.literal_eval(meta['pipeline'])
        if not all(isinstance(transform['type'], str) for transform in meta['pipeline']):
            raise ValueError('its transforms must have names')
        # Neither is in files of 0.1.0.
        meta['model'] = meta.get('model') and ast.literal_eval(meta['model'])
        meta['channels'] = int(meta.get('channels', 3))
    except (KeyError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f'{path} has damaged metadata of pelk_mm ({type(error).__name__}: {error}): export it again '
                         'with tools/model_converters/export.py') from error
    return meta


def _refuse_strangers(node: Any, path: str | Path, registry: Registry) -> None:
    """Let a file name registered classes alone: MMEngine would call any function by its dotted name."""
    if isinstance(node, dict):
        kind = node.get('type')
        if kind is not None and not _is_registered(
                kind, registry) or node.get('_scope_', 'mmengine') not in ('mmengine', *TASKS):
            what = 'its pipeline, which is no registered transform' if registry is TRANSFORMS else (
                'its model, which is not registered here (import the module that does it)')
            raise ValueError(f'{path} names {kind!r} in {what}, and is not called: the file was not written by '
                             'tools/model_converters/export.py, or by one that knew more')
        node = list(node.values())
    for child in node if isinstance(node, (list, tuple)) else ():
        _refuse_strangers(child, path, registry)


def _is_registered(name: Any, root: Registry) -> bool:
    scope, _, bare = str(name).rpartition('.')
    if scope not in ('', 'mmengine', 'pelk_mm', *TASKS) or not bare.replace('/', '').isidentifier():
        return False
    with root.switch_scope_and_registry(None) as registry:
        registry.import_from_location()
        known = [each.module_dict for each in (root, *root.children.values())]
        # Of other names a look-up would import what they name.
        found = registry.get(str(name)) if any(bare in names for names in known) else None
    return any(found is registered for names in known for registered in names.values())
