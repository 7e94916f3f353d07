"""Deployed models as ONNX files and ``torch.export`` packages, for any batch and image size."""

from __future__ import annotations

import ast
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .. import __version__
from ..analysis.inputs import count_channels, normalisation, swaps_colours
from ..checkpoints.atomic import atomic_write, refuse_existing
from .export_forms import free_sizes, prepare_for_export
from .images import test_pipeline
from .onnx_ops import translations
from .predicting import exported_heads, segmentation_logits

OPSET = 20
# ONNX files hold 2 GiB at most. Beyond these bytes of weights PyTorch writes them to a file of their own.
_ONE_FILE = 1536 * 2**20
TASKS = dict(mmpretrain='classification', mmseg='segmentation', mmdet='detection')


class ImageModel(nn.Module):
    """What is exported: a model with the normalisation before it, for images as viewers hold them.

    A classifier gives ``logits`` (N, classes), with a multi-task head one output for each task, by its name. A
    segmentor gives ``logits`` (N, out_channels, H, W) at the size of the image, and of a detector the backbone gives
    its feature maps, ``stage0`` (N, C, H / 4, W / 4), ``stage1``, ... What turns logits into labels is not exported: it
    is the model's own code, which :class:`pelk_mm.deploy.OnnxModel` calls.

    Args:
        model (nn.Module): A model of mmpretrain, mmseg or mmdet. It is left as it is.
        task (str): ``'classification'``, ``'segmentation'`` or ``'detection'``.
        form (str, optional): Make the model ready for export, see :func:`prepare_for_export`; None leaves it.

    Attributes:
        channels (int): Of the images.

    Raises:
        ValueError: If the model is not one of these: a classifier without a head, a segmentor without
            ``encode_decode``.
    """

    def __init__(self, model: nn.Module, task: str, form: str | None = None) -> None:
        super().__init__()
        self.channels = count_channels(model)
        # Pipelines load BGR. Of other numbers of channels the order stays.
        self.takes_bgr = self.channels == 3 and not swaps_colours(model.data_preprocessor, 3)
        mean, std = normalisation(model.data_preprocessor, self.channels)
        self.register_buffer('mean', mean)
        self.register_buffer('std', std)
        self.task = task
        self._outputs = self._name_outputs(model)
        exported = model.get_submodule('backbone') if task == 'detection' else model
        self.model = exported if form is None else prepare_for_export(exported, form)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs.

        Args:
            image (Tensor): (N, C, H, W), fp32 values as files hold them, such as 0 ... 255; three channels are RGB.

        Raises:
            TypeError: If a head of a classifier returns anything but one tensor.
        """
        x = ((image.flip(1) if self.takes_bgr else image) - self.mean) / self.std
        if self.task == 'detection':
            return tuple(self.model(x))
        if self.task == 'segmentation':
            return (segmentation_logits(self.model, x), )
        features = self.model.extract_feat(x)
        outputs = tuple(head(features) for head in exported_heads(self.model).values())
        for head, output in zip(exported_heads(self.model).values(), outputs):
            if not isinstance(output, Tensor):
                raise TypeError(f'a head must return one tensor to be exported, {type(head).__name__} returns '
                                f'{type(output).__name__}')
        return outputs

    def output_names(self) -> list[str]:
        """Names of what :meth:`forward` returns."""
        return list(self._outputs)

    def _name_outputs(self, model: Any) -> list[str]:
        if self.task == 'detection':
            return [f'stage{i}' for i in model.backbone.out_indices]
        if self.task == 'classification':
            return list(exported_heads(model))
        if not hasattr(model, 'encode_decode'):
            raise ValueError(f'model must be a segmentor with encode_decode(), got {type(model).__name__}')
        return ['logits']


def task_of(cfg: Config) -> str:
    """The task of a config's model, by its toolbox.

    Raises:
        ValueError: If its ``default_scope`` is of no known toolbox.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise ValueError(f'default_scope of the config must be one of {sorted(TASKS)}, got {scope!r}')
    return TASKS[scope]


def capture(model: ImageModel) -> ExportedProgram:
    """Trace a model once, for any batch and size; in a package heights and widths must be at least 64.

    Args:
        model (ImageModel): With a ``form``.

    Raises:
        RuntimeError: If a part of the model cannot be traced, such as a head that computes with what it reads.
    """
    # The last of four stages has several pixels in both directions: a side of one would be taken for a constant.
    image = torch.zeros(2, model.channels, 96, 128)
    dynamic = dict(image={0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    try:
        with torch.no_grad(), free_sizes():
            program = torch.export.export(model.eval(), (image, ), dynamic_shapes=dynamic)
    # The exporter raises nearly anything.
    except Exception as error:
        parts = ', '.join(f'{name} {type(part).__name__}' for name, part in model.model.named_children())
        reason = (str(error).strip().splitlines() or [''])[0]
        raise RuntimeError(f'{type(model.model).__name__} ({parts}) cannot be exported for images of any size, because '
                           f'torch.export cannot trace its code ({type(error).__name__}: {reason})') from error
    # Lines of source with the paths of this machine, larger than small models.
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)
    return program


def save_onnx(program: ExportedProgram, path: str | Path, output_names: Sequence[str], meta: Mapping[str, Any]) -> None:
    """Write an ONNX file with one input, ``image``.

    Args:
        program (ExportedProgram): What :func:`capture` returned.
        path (str | Path): File to write; it must not exist.
        output_names (Sequence[str]): Names of the outputs.
        meta (Mapping[str, Any]): Saved as JSON in the file's metadata, under ``pelk_mm``.

    Raises:
        FileExistsError: If the file exists.
        ImportError: If onnx or onnxscript is missing.
        RuntimeError: If the result has an operation that is not of ONNX's own standard.
    """
    refuse_existing(path)
    with _quiet('torch.onnx', 'onnxscript', 'onnx_ir'):
        result = torch.onnx.export(
            program,
            dynamo=True,
            input_names=['image'],
            output_names=list(output_names),
            opset_version=OPSET,
            custom_translation_table=translations(),
            verbose=False)
    assert result is not None, 'the exporter returns a program when it is given no file'
    foreign = sorted({f'{node.domain}::{node.op_type}' for node in result.model.graph.all_nodes() if node.domain})
    if foreign or result.model.functions:
        raise RuntimeError(f'{path} would need operations beyond the ONNX standard: {foreign}')
    # What is left of the tracing would be larger than small models.
    for part in (result.model.graph, *result.model.graph):
        part.metadata_props.clear()
    result.model.metadata_props['pelk_mm'] = json.dumps(dict(meta))
    sizes: list[int] = [value.const_value.nbytes for value in result.model.graph.initializers.values()]
    if sum(sizes) > _ONE_FILE:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        result.save(str(path))
    else:
        atomic_write(result.model_proto.SerializeToString(), str(path))


def save_package(program: ExportedProgram, path: str | Path) -> None:
    """Write a package that ``torch.export.load(path).module()`` runs.

    The dense form needs PyTorch alone. The fast form needs ``import pelk_mm.ops`` before, which needs no more, and then
    runs with the fastest backend there is.

    Raises:
        FileExistsError: If the file exists.
    """
    refuse_existing(path)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    atomic_write(buffer.getbuffer(), str(path))


def describe(cfg: Config, meta: Mapping[str, Any], channels: int = 3) -> dict[str, Any]:
    """What running an exported model needs to know besides its graph, JSON-ready.

    The pipeline and the model are Python literals: JSON would turn their tuples into lists, which transforms take for
    something else. Of the model, all is kept that makes predictions of the outputs: the data preprocessor, the head and
    ``test_cfg``; of a detector nothing.

    Args:
        cfg (Config): The model's config.
        meta (Mapping[str, Any]): The checkpoint's.
        channels (int): Of the images.

    Raises:
        ValueError: If a transform of the pipeline, or the head, has an argument that is no plain value.
    """
    dataset = meta.get('dataset_meta') or {}
    task = task_of(cfg)
    pipeline = Config(dict(pipeline=test_pipeline(cfg))).to_dict()['pipeline']
    return dict(
        task=task,
        scope=cfg.default_scope,
        classes=list(dataset.get('classes') or ()),
        palette=[list(color) for color in dataset.get('palette') or ()],
        pipeline=_literal(pipeline, 'the test pipeline'),
        model=None if task == 'detection' else _literal(_rules(cfg), 'the model'),
        input=f'(N, {channels}, H, W), float32, values as files hold them{", RGB" if channels == 3 else ""}',
        channels=channels,
        pelk_mm_version=__version__)


def _rules(cfg: Config) -> dict[str, Any]:
    """The config of a model without its network."""
    content = Config(dict(model=cfg.model)).to_dict()['model']
    if cfg.get('data_preprocessor') is not None:
        content.setdefault('data_preprocessor', Config(dict(value=cfg.data_preprocessor)).to_dict()['value'])
    content = _without(content, ('init_cfg', 'pretrained', 'train_cfg', 'auxiliary_head', 'batch_augments', 'neck'))
    # Any module without parameters: it never runs.
    return dict(content, backbone=dict(type='ReLU'))


def _without(node: Any, keys: Sequence[str]) -> Any:
    if isinstance(node, dict):
        return {key: _without(value, keys) for key, value in node.items() if key not in keys}
    return type(node)(_without(value, keys) for value in node) if isinstance(node, (list, tuple)) else node


def _literal(node: Any, owner: str) -> str:
    for where, key, value in _values(node, owner):
        try:
            ast.literal_eval(repr(value))
        except (SyntaxError, ValueError) as error:
            raise ValueError(f'{owner} must hold plain values to be saved in an ONNX file, got {key}={value!r} of '
                             f'{where}') from error
    return repr(node)


def _values(node: Any, where: str, key: Any = '') -> Iterator[tuple[str, Any, Any]]:
    """Every value that holds no others, with the type that it is an argument of, and its name."""
    if isinstance(node, dict):
        where = str(node.get('type', where))
        for name, value in node.items():
            yield from _values(value, where, name)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _values(value, where, key)
    else:
        yield where, key, node


@contextmanager
def _quiet(*names: str):
    """Without the warnings and notes of the exporters' own steps."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
