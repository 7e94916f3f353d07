"""Images as a model's test pipeline prepares them, and predictions by its own code, also with an exported network.

The step from logits to labels (softmax, threshold, the best k, sliding windows) is the model's own code. It runs here
as in testing. An exported network only replaces a segmentor's ``encode_decode``, the ``forward`` of a classifier's
heads, or that of a detector's backbone.
"""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope, Registry
from torch import Tensor

from ..analysis.inputs import fit_channels, normalisation, swaps_colours
from ..analysis.model_building import build_without_weights
from ..engine.image_files import check_pipeline, check_when_loading
from ..engine.processes import nested_dicts
from ..image_names import IMAGE_SUFFIXES, list_image_files
from .export import TASKS, exported_heads, get_test_pipeline, split_loader, transform_name
from .runtimes import open_session

# Images (N, C, H, W), 0 ... 255, RGB, to the outputs of the network.
Network = Callable[[Tensor], Sequence[Tensor]]


class ImagePipeline:
    """A pipeline of a toolbox's transforms for testing, in two parts: the one that loads the image, and those after it.

    Without one that loads, images of the usual formats are loaded. With ``check`` every file is checked before, and
    named in errors.

    Attributes:
        plain_files (bool): Whether images of the usual formats are loaded by the usual decoder, so that files can be
            checked.
    """

    def __init__(self, transforms: Sequence[dict], scope: str | None, check: bool = False) -> None:
        self.scope = scope
        loader, rest = split_loader(transforms)
        self.plain_files = loader is None or (transform_name(loader) == 'LoadImageFromFile'
                                              and not loader.get('imdecode_backend'))
        with DefaultScope.overwrite_default_scope(scope):
            self._load = Compose([TRANSFORMS.build(loader or dict(type='mmcv.LoadImageFromFile'))])
            self._rest = Compose([TRANSFORMS.build(transform) for transform in rest])
        if check:
            check_pipeline(self._load)
            check_pipeline(self._rest)

    def load(self, source: str | Path | dict) -> np.ndarray:
        """Load an image (H, W, C) or (H, W), three channels as BGR, by its path or by a data set's information."""
        return self._load_info(source)['img']

    def run(self, path: str | Path) -> dict:
        """Load an image and run all other transforms on it."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return self._rest(self._load_info(path))

    def prepare(self, image: np.ndarray, channels: int) -> dict:
        """Run the transforms after the loading on an image (H, W, C) or (H, W), three channels as BGR.

        Raises:
            ValueError: If the image does not have as many channels as the model takes.
        """
        image = fit_channels(image, channels, 'image')
        # As loaders give grey images to the transforms.
        image = image[..., 0] if image.shape[2] == 1 else image
        shape = image.shape[:2]
        with DefaultScope.overwrite_default_scope(self.scope):
            return self._rest(dict(img=image, img_path='', img_id=0, img_shape=shape, ori_shape=shape))

    def _load_info(self, source: str | Path | dict) -> dict:
        with DefaultScope.overwrite_default_scope(self.scope):
            return self._load(source if isinstance(source, dict) else dict(img_path=str(source), img_id=0))


def image_loader(cfg: Config, check: bool = True) -> Callable[[str | Path], np.ndarray]:
    """Return a function that loads an image (H, W, C) or (H, W) as the config's test pipeline does.

    With ``check`` it checks every file before, and names it in errors.

    Raises:
        ValueError: If the config has no pipeline for testing.
    """
    loader, _ = split_loader(get_test_pipeline(cfg))
    return ImagePipeline([loader] if loader else [], cfg.get('default_scope'), check).load


def list_images(folder: str | Path) -> list[Path]:
    """List the image files of a folder, sorted by name.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'folder of images: no such folder, {folder}')
    files = list_image_files(folder)
    if not files:
        raise FileNotFoundError(f'folder of images: {folder} has none of {", ".join(IMAGE_SUFFIXES)}')
    return files


class EvalImages:
    """At most ``count`` images of the config's test dataset, evenly spaced over it, or of a folder.

    Raises:
        FileNotFoundError: If the dataset's files, or images in the folder, are missing.
        ValueError: If ``count`` is below 1 or the config has no pipeline for testing.
    """

    def __init__(self, cfg: Config, count: int, folder: str | None = None) -> None:
        if count < 1:
            raise ValueError(f'count must be at least 1, got {count}')
        self.scope = cfg.get('default_scope')
        self._pipeline = ImagePipeline(get_test_pipeline(cfg), self.scope, check=True)
        self._get: Callable[[Any], dict] = self._pipeline.run
        self._info: Callable[[Any], Any] = lambda file: file
        if folder is not None:
            self._items: list[Any] = list_images(folder)[:count]
            return
        with DefaultScope.overwrite_default_scope(self.scope):
            dataset = DATASETS.build(cfg.test_dataloader.dataset)
        check_when_loading(dataset)
        step = max(len(dataset) / count, 1)
        self._items = [int(i * step) for i in range(min(count, len(dataset)))]
        self._get, self._info = dataset.__getitem__, dataset.get_data_info

    def __len__(self) -> int:
        return len(self._items)

    def batches(self) -> Iterator[dict]:
        """Yield batches of one image each, as data preprocessors take them."""
        for item in self._items:
            with DefaultScope.overwrite_default_scope(self.scope):
                batch = pseudo_collate([self._get(item)])
            yield batch

    def network_input(self, index: int) -> np.ndarray:
        """Return an image as exported models take it: (1, C, H, W), float32, three channels as RGB."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return _network_input(self._get(self._items[index])['inputs'])

    def arrays(self) -> Iterator[np.ndarray]:
        """Yield the images (H, W, C) or (H, W) as the pipeline loads them, three channels as BGR."""
        for item in self._items:
            yield self._pipeline.load(self._info(item))


def predict(model: Any, batch: dict) -> list:
    """Return the data samples that a model makes of a batch as its data loader gives it, which stays as it is."""
    batch = copy.deepcopy(batch)
    if hasattr(getattr(model, 'head', None), 'task_heads'):
        # Without labels of a task, the head of it would get None for a sample, which not all take.
        batch.pop('data_samples', None)
    with torch.no_grad():
        return model.test_step(batch)


@contextmanager
def exported_network(model: Any, task: str, network: Network, channels: int) -> Iterator[None]:
    """Let ``model``, whose own network does not run and needs no weights, predict from those of an exported network."""
    mean, std = normalisation(model.data_preprocessor, channels)
    swapped = channels == 3 and not swaps_colours(model.data_preprocessor, channels)

    def run(inputs: Tensor, *_: Any) -> list[Tensor]:
        # The network normalises by itself. Padding has its place after that, and so stays what it was.
        images = inputs * std + mean
        return list(network(images.flip(1) if swapped else images))

    with ExitStack() as stack:

        def replace(owner: Any, name: str, function: Callable) -> None:
            stack.enter_context(mock.patch.object(owner, name, function))

        if task == 'segmentation':
            replace(model, 'encode_decode', lambda inputs, *_: run(inputs)[0])
        elif task == 'detection':
            replace(model.backbone, 'forward', lambda inputs: tuple(run(inputs)))
        else:
            outputs: dict[str, Tensor] = {}
            names = list(exported_heads(model))
            replace(model, 'extract_feat', lambda inputs, *_, **__: outputs.update(zip(names, run(inputs))))
            for name, head in exported_heads(model).items():
                replace(head, 'forward', lambda *_, name=name, **__: outputs[name])
        yield


class ExportedModel:
    """A file that :mod:`pelk_mm.deploy` wrote, on the CPU: ``.onnx`` in onnxruntime, ``.xml`` in OpenVINO.

    Args:
        path (str | Path): The file, in fp32 or int8.
        threads (int, optional): Threads of one operation. By default the runtime's choice, one per core.
        precision (str, optional): Of OpenVINO's arithmetic where the file has no int8: ``'f32'`` or ``'bf16'``; None
            leaves it to OpenVINO, which takes bf16 on CPUs that have it. Defaults to ``'f32'``.
        shape (Sequence[int], optional): Of the images, (N, C, H, W), which makes OpenVINO faster. By default any.

    Attributes:
        meta (dict): Task, classes, palette and pipeline, see :func:`pelk_mm.deploy.describe`.
        pipeline (ImagePipeline): The test pipeline.
        outputs (list[str]): Names of the outputs.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the runtime is missing.
        ValueError: If the file was not written by this package.
    """

    def __init__(self,
                 path: str | Path,
                 threads: int | None = None,
                 precision: str | None = 'f32',
                 shape: Sequence[int] | None = None) -> None:
        self._run, self.outputs, meta = open_session(path, threads, precision, shape)
        if meta is None:
            raise ValueError(f'{path} has no metadata of pelk_mm: export it with tools/model_converters/export.py')
        self.meta = _read_meta(meta, path)
        self._path = path
        with DefaultScope.overwrite_default_scope(self.meta['scope']):
            _refuse_strangers(self.meta['pipeline'], path, TRANSFORMS)
        self.pipeline = ImagePipeline(self.meta['pipeline'], self.meta['scope'])
        self._model: Any = None

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run the graph on images (N, C, H, W), float32, values as files hold them; three channels are RGB.

        Returns:
            list[np.ndarray]: In the order of ``outputs``.
        """
        return self._run(images)

    def run_tensors(self, images: Tensor) -> list[Tensor]:
        """Run as :meth:`run`, from and to tensors on the CPU."""
        return [torch.from_numpy(output) for output in self.run(np.ascontiguousarray(images.numpy(), np.float32))]

    def load(self, path: str | Path) -> np.ndarray:
        """Load an image (H, W, C) as the model's test pipeline does, three channels as BGR."""
        return self.pipeline.load(path)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Bring an image, (H, W, C) or (H, W) as :meth:`load` returns it, to the size that the model was tested at.

        Returns:
            np.ndarray: (1, C, H', W'), float32, three channels as RGB.

        Raises:
            ValueError: If the image does not have the channels that the model takes.
        """
        return _network_input(self.pipeline.prepare(image, self.meta['channels'])['inputs'])

    def predict(self, image: np.ndarray) -> Any:
        """Return the data sample that the model's own code makes of an image as for :meth:`prepare`, as in testing.

        Returns:
            DataSample | SegDataSample: With ``pred_label`` and ``pred_score``, or with ``pred_sem_seg``; one for each
            task if the head has several.

        Raises:
            ValueError: If the image does not have the channels that the model takes, or the file holds the backbone of
                a detector, whose heads are not in it.
        """
        return self.predict_batch(pseudo_collate([self.pipeline.prepare(image, self.meta['channels'])]))[0]

    def predict_batch(self, batch: dict) -> list:
        """Predict as :meth:`predict`, of images that went through the test pipeline, as data loaders collate them."""
        if self.meta['task'] == 'detection':
            raise ValueError(f'{self._path} holds the backbone of a detector, which predicts nothing: use features()')
        model = self._rules()
        # The scope is for parts that a model's code builds when it runs.
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


# Its name in 0.1.0.
OnnxModel = ExportedModel


def _network_input(packed: Tensor) -> np.ndarray:
    """Turn (C, H, W) as a pipeline packs it, three channels as BGR, into (1, C, H, W), float32, RGB."""
    array = packed.numpy()[None]
    return np.ascontiguousarray(array[:, ::-1] if array.shape[1] == 3 else array, np.float32)


def _read_meta(text: str, path: str | Path) -> dict[str, Any]:
    """Read the metadata that :func:`pelk_mm.deploy.describe` wrote; its pipeline becomes a list of dicts."""
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


def _refuse_strangers(content: Any, path: str | Path, registry: Registry) -> None:
    """Let a file name only registered classes: MMEngine would call any function by its dotted name."""
    for node in nested_dicts(content):
        kind = node.get('type')
        if kind is not None and not _is_registered(
                kind, registry) or node.get('_scope_', 'mmengine') not in ('mmengine', *TASKS):
            what = 'its pipeline, which is no registered transform' if registry is TRANSFORMS else (
                'its model, which is not registered here (import the module that does it)')
            raise ValueError(f'{path} names {kind!r} in {what}, and is not called: the file was not written by '
                             'tools/model_converters/export.py, or by one that knew more')


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
