"""Deployed models as ONNX files and ``torch.export`` packages, for any batch and image size."""

from __future__ import annotations

import ast
import copy
import functools
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .. import __version__
from ..analysis.inputs import count_channels, normalisation, swaps_colours
from ..analysis.model_building import quiet
from ..checkpoints.atomic import atomic_write, refuse_existing
from ..engine.processes import nested_dicts
from ..layers import PeripheralConv2d
from .onnx_ops import BOX_SUMS, translations

KERNEL_FORMS = ('fast', 'dense')
OPSET = 20
# ONNX files hold 2 GiB at most. Beyond these bytes of weights PyTorch writes them to a file of their own.
_ONE_FILE = 1536 * 2**20
TASKS = dict(mmpretrain='classification', mmseg='segmentation', mmdet='detection')


class AveragePoolByProducts(nn.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, for maps of any size."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, *output_size)."""
        wanted = self.output_size if isinstance(self.output_size, tuple) else (self.output_size, ) * 2
        rows, cols = (self._shares(size if count is None else count, size, x)
                      for count, size in zip(wanted, x.shape[-2:]))
        return rows @ x @ cols.transpose(0, 1)

    @staticmethod
    def _shares(count: int, size: int, like: Tensor) -> Tensor:
        """Return (count, size): bin i averages positions floor(i size / count) ... ceil((i + 1) size / count) - 1."""
        bins = torch.arange(count, device=like.device)[:, None]
        start, end = bins * size // count, ((bins + 1) * size + count - 1) // count
        positions = torch.arange(size, device=like.device)
        inside = (positions >= start) & (positions < end)
        return inside.to(like.dtype) / (end - start).to(like.dtype)


def _accept_former_name(function: Callable) -> Callable:
    """Accept ``form``, the name of ``kernel_form`` in 0.1.0."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if 'form' in kwargs:
            return function(*args, kernel_form=kwargs.pop('form'), **kwargs)
        return function(*args, **kwargs)

    return call


@_accept_former_name
def prepare_for_export(model: nn.Module, kernel_form: str = 'fast') -> nn.Module:
    """Replace modules that exporters cannot handle, or handle only at fixed sizes.

    Args:
        model (nn.Module): It is left as it is.
        kernel_form (str): ``'fast'`` keeps peripheral convolutions: ONNX gets box sums and a matrix product, a package
            the operator of ``pelk_mm.ops``. ``'dense'`` makes depthwise convolutions with the expanded kernels of them.

    Returns:
        nn.Module: A copy for inference.

    Raises:
        ValueError: If ``kernel_form`` is unknown.
    """
    if kernel_form not in KERNEL_FORMS:
        raise ValueError(f'kernel_form must be one of {KERNEL_FORMS}, got {kernel_form!r}')
    model = copy.deepcopy(model).requires_grad_(False)
    # Not chained: some backbones of the toolboxes return nothing.
    model.eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, PeripheralConv2d) and kernel_form == 'dense':
            model.set_submodule(name, _dense_conv(module))
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            model.set_submodule(name, AveragePoolByProducts(module.output_size))
    return model


def _dense_conv(conv: PeripheralConv2d) -> nn.Conv2d:
    size = conv.grid.kernel_size
    dense = nn.Conv2d(conv.channels, conv.channels, size, padding=size // 2, groups=conv.channels, bias=False)
    dense.weight = nn.Parameter(conv.kernel().unsqueeze(1), requires_grad=False)
    dense.bias = conv.bias
    return dense


def exported_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Return a classifier's heads by the names of their outputs: ``logits``, or ``<task>`` of a multi-task head.

    Raises:
        ValueError: If the model has no head that predicts.
    """
    head: Any = getattr(model, 'head', None)
    if not callable(getattr(head, 'predict', None)) or not hasattr(model, 'extract_feat'):
        raise ValueError(f'model must be a classifier with a head, got {type(model).__name__} with '
                         f'{type(head).__name__}')
    return dict(_leaves(head)) if hasattr(head, 'task_heads') else dict(logits=head)


def _leaves(head: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, nn.Module]]:
    if not hasattr(head, 'task_heads'):
        yield '.'.join(names), head
        return
    for name, child in head.task_heads.items():
        yield from _leaves(child, (*names, name))


def segmentation_logits(model: Any, images: Tensor) -> Tensor:
    """Return a segmentor's logits (N, out_channels, H, W) at the size of its normalised images (N, C, H, W)."""
    size = images.shape[2:]
    return model.encode_decode(images, [dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)])


class ImageModel(nn.Module):
    """A model with the normalisation before it, for images as viewers hold them, as it is exported.

    A classifier gives ``logits`` (N, classes), with a multi-task head one output for each task, by its name. A
    segmentor gives ``logits`` (N, out_channels, H, W) at the size of the image, and of a detector the backbone gives
    its feature maps, ``stage0`` (N, C, H / 4, W / 4), ``stage1``, ... The step from logits to labels is not exported:
    it is the model's own code, which :class:`pelk_mm.deploy.OnnxModel` calls.

    Args:
        model (nn.Module): A model of mmpretrain, mmseg or mmdet. It is left as it is.
        task (str): ``'classification'``, ``'segmentation'`` or ``'detection'``.
        kernel_form (str, optional): Make the model ready for export, see :func:`prepare_for_export`; None leaves it.

    Attributes:
        channels (int): Of the images.

    Raises:
        ValueError: If the model is not one of these: a classifier without a head, a segmentor without
            ``encode_decode``.
    """

    @_accept_former_name
    def __init__(self, model: nn.Module, task: str, kernel_form: str | None = None) -> None:
        super().__init__()
        self.channels = count_channels(model)
        # Pipelines load BGR. Of other numbers of channels the order stays.
        self.takes_bgr = self.channels == 3 and not swaps_colours(model.data_preprocessor, 3)
        for name, value in zip(('mean', 'std'), normalisation(model.data_preprocessor, self.channels)):
            self.register_buffer(name, value)
        self.task = task
        self._outputs = self._name_outputs(model)
        exported = model.get_submodule('backbone') if task == 'detection' else model
        self.model = exported if kernel_form is None else prepare_for_export(exported, kernel_form)

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
        features, heads = self.model.extract_feat(x), exported_heads(self.model).values()
        outputs = tuple(head(features) for head in heads)
        for head, output in zip(heads, outputs):
            if not isinstance(output, Tensor):
                raise TypeError(f'a head must return one tensor to be exported, {type(head).__name__} returns '
                                f'{type(output).__name__}')
        return outputs

    def output_names(self) -> list[str]:
        """Return the names of the outputs of :meth:`forward`."""
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
    """Return the task of a config's model, by its toolbox.

    Raises:
        ValueError: If its ``default_scope`` is of no known toolbox.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise ValueError(f'default_scope of the config must be one of {sorted(TASKS)}, got {scope!r}')
    return TASKS[scope]


def capture(model: ImageModel) -> ExportedProgram:
    """Trace a model with a ``kernel_form`` for any batch and size; in a package sides must be at least 64.

    Raises:
        RuntimeError: If a part of the model cannot be traced, such as a head that computes with what it reads.
    """
    # The last of four stages has several pixels in both directions: a side of one would be taken for a constant.
    image = torch.zeros(2, model.channels, 96, 128)
    dynamic = dict(image={0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    try:
        with torch.no_grad(), _free_sizes():
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
    """Write a program of :func:`capture` as an ONNX file with one input, ``image``.

    ``meta`` is saved as JSON in the file's metadata, under ``pelk_mm``.

    Raises:
        FileExistsError: If the file exists.
        ImportError: If onnx or onnxscript is missing.
        RuntimeError: If the result has an operation that is not of ONNX's own standard.
    """
    refuse_existing(path)
    with quiet(*map(logging.getLogger, ('torch.onnx', 'onnxscript', 'onnx_ir')), level=logging.ERROR):
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
    for node in result.model.graph:
        if 'pelk_mm.peripheral_conv2d' in node.metadata_props.get('pkg.torch.onnx.fx_node', ''):
            node.name = f'{BOX_SUMS}{node.name}'
    # The traces' remains would be larger than small models.
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

    The dense form needs only PyTorch. The fast form needs ``import pelk_mm.ops`` before, which needs no more, and then
    runs with the fastest backend there is.

    Raises:
        FileExistsError: If the file exists.
    """
    refuse_existing(path)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    atomic_write(buffer.getbuffer(), str(path))


def get_test_pipeline(cfg: Config) -> list[dict]:
    """Return the transforms that the config tests with, the one that loads the image first, without annotations.

    Raises:
        ValueError: If the config has no pipeline for testing.
    """
    dataset: dict = cfg.get('test_dataloader', {}).get('dataset', {})
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    if 'pipeline' not in dataset:
        raise ValueError('cfg must have test_dataloader.dataset.pipeline')
    loader, rest = split_loader(dataset['pipeline'])
    kept = [transform for transform in rest if not _loads(transform) or 'Image' in transform_name(transform)]
    return copy.deepcopy([loader, *kept] if loader else kept)


def split_loader(pipeline: Sequence[dict]) -> tuple[dict | None, list[dict]]:
    """Return the transform of a pipeline that loads the image, the first that loads, and the others."""
    loader = next(filter(_loads, pipeline), None)
    return loader, [transform for transform in pipeline if transform is not loader]


def transform_name(transform: dict) -> str:
    """Return the name of a transform's class without its scope; in MMEngine's newer configs the type is the class."""
    kind = transform['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def _loads(transform: dict) -> bool:
    return transform_name(transform).startswith('Load')


def describe(cfg: Config, meta: Mapping[str, Any], channels: int = 3) -> dict[str, Any]:
    """Return the JSON-ready metadata that running an exported model needs besides its graph.

    The pipeline and the model are Python literals: JSON would turn their tuples into lists, which transforms take for
    something else. Of the model, all is kept that makes predictions of the outputs: the data preprocessor, the head and
    ``test_cfg``; of a detector nothing. ``meta`` is the checkpoint's.

    Raises:
        ValueError: If a transform of the pipeline, or the head, has an argument that is no plain value.
    """
    dataset, task = meta.get('dataset_meta') or {}, task_of(cfg)
    return dict(
        task=task,
        scope=cfg.default_scope,
        classes=list(dataset.get('classes') or ()),
        palette=[list(color) for color in dataset.get('palette') or ()],
        pipeline=_literal(Config(dict(value=get_test_pipeline(cfg))).to_dict()['value'], 'the test pipeline'),
        model=None if task == 'detection' else _literal(_rules(cfg), 'the model'),
        input=f'(N, {channels}, H, W), float32, values as files hold them{", RGB" if channels == 3 else ""}',
        channels=channels,
        pelk_mm_version=__version__)


def _rules(cfg: Config) -> dict[str, Any]:
    parts = Config({key: cfg[key] for key in ('model', 'data_preprocessor') if cfg.get(key) is not None}).to_dict()
    # In the recipes the data preprocessor lies beside the model. The backbone never runs, and needs no parameters.
    content = {'data_preprocessor': parts.get('data_preprocessor'), **parts['model'], 'backbone': dict(type='ReLU')}
    for node in nested_dicts(content):
        for key in ('init_cfg', 'pretrained', 'train_cfg', 'auxiliary_head', 'batch_augments', 'neck'):
            node.pop(key, None)
    return content


def _literal(node: Any, owner: str) -> str:
    """Return the ``repr`` of a nest of plain values; errors name the type that an argument belongs to."""
    # The innermost first, to name the value itself.
    for part in reversed(list(nested_dicts(node))):
        for key, value in part.items():
            try:
                ast.literal_eval(repr(value))
            except (SyntaxError, ValueError) as error:
                raise ValueError(f'{owner} must hold plain values to be saved in an ONNX file, got {key}={value!r} of '
                                 f'{part.get("type", owner)}') from error
    return repr(node)


def _no_sizes(_) -> tuple[int, int]:
    return 0, 0


@contextmanager
def _free_sizes() -> Iterator[None]:
    """Let mmseg's ``resize`` leave sizes open while a model is traced.

    With ``align_corners`` it makes numbers of both sizes, only to warn, which would fix them in the graph.
    """
    wrappers = sys.modules.get('mmseg.models.utils.wrappers')
    with mock.patch.object(wrappers, 'tuple', new=_no_sizes, create=True) if wrappers else nullcontext():
        yield
