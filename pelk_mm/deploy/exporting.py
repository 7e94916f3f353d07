"""Deployed models as ONNX files and ``torch.export`` packages, for any batch and image size."""

from __future__ import annotations

import ast
import io
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .. import __version__
from ..whole_files import refuse_existing, write_whole
from .export_forms import prepare_for_export
from .images import test_pipeline
from .onnx_ops import translations

OPSET = 20
# ONNX files hold 2 GiB at most. Beyond these bytes of weights PyTorch writes them to a file of their own.
_ONE_FILE = 1536 * 2**20
TASKS = dict(mmpretrain='classification', mmseg='segmentation', mmdet='detection')


class ImageModel(nn.Module):
    """What is exported: a model with the normalisation before it, for images as viewers hold them.

    A classifier gives ``logits`` (N, classes), a segmentor ``logits`` (N, classes, H, W) at the size of the image, and
    of a detector the backbone gives its feature maps, ``stage0`` (N, C, H / 4, W / 4), ``stage1``, ...

    Args:
        model (nn.Module): A model of mmpretrain, mmseg or mmdet. It is left as it is.
        task (str): ``'classification'``, ``'segmentation'`` or ``'detection'``.
        form (str, optional): Make the model ready for export, see :func:`prepare_for_export`; None leaves it.
    """

    def __init__(self, model: nn.Module, task: str, form: str | None = None) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        # mmpretrain says to_rgb. Pipelines load BGR.
        self.takes_rgb = bool(getattr(preprocessor, 'to_rgb', getattr(preprocessor, '_channel_conversion', False)))
        normalised = getattr(preprocessor, '_enable_normalize', False)
        self.register_buffer('mean', preprocessor.mean.clone() if normalised else torch.zeros(3, 1, 1))
        self.register_buffer('std', preprocessor.std.clone() if normalised else torch.ones(3, 1, 1))
        exported = model.get_submodule('backbone') if task == 'detection' else model
        self.model = exported if form is None else prepare_for_export(exported, form)
        self.task = task
        self.align_corners = task == 'segmentation' and bool(model.align_corners)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs.

        Args:
            image (Tensor): (N, 3, H, W), fp32 values of 0 ... 255, RGB.
        """
        x = ((image if self.takes_rgb else image.flip(1)) - self.mean) / self.std
        if self.task == 'detection':
            return tuple(self.model(x))
        logits = self.model(x, mode='tensor')
        if self.task == 'segmentation':
            logits = F.interpolate(logits, image.shape[-2:], mode='bilinear', align_corners=self.align_corners)
        return (logits, )

    def output_names(self) -> list[str]:
        """Names of what :meth:`forward` returns."""
        return [f'stage{i}' for i in self.model.out_indices] if self.task == 'detection' else ['logits']


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
    """
    # The last of four stages has several pixels in both directions: a side of one would be taken for a constant.
    image = torch.zeros(2, 3, 96, 128)
    dynamic = dict(image={0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    with torch.no_grad():
        program = torch.export.export(model.eval(), (image, ), dynamic_shapes=dynamic)
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
        write_whole(result.model_proto.SerializeToString(), str(path))


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
    write_whole(buffer.getbuffer(), str(path))


def describe(cfg: Config, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What running an exported model needs to know besides its graph, JSON-ready.

    The pipeline is a Python literal: JSON would turn its tuples into lists, which transforms take for something else.

    Args:
        cfg (Config): The model's config.
        meta (Mapping[str, Any]): The checkpoint's.

    Raises:
        ValueError: If a transform of the pipeline has an argument that is no plain value.
    """
    dataset = meta.get('dataset_meta') or {}
    return dict(
        task=task_of(cfg),
        scope=cfg.default_scope,
        classes=list(dataset.get('classes') or ()),
        palette=[list(color) for color in dataset.get('palette') or ()],
        pipeline=_literal(Config(dict(pipeline=test_pipeline(cfg))).to_dict()['pipeline']),
        input='(N, 3, H, W), float32, 0 ... 255, RGB',
        pelk_mm_version=__version__)


def _literal(pipeline: list[dict]) -> str:
    for transform in pipeline:
        for key, value in transform.items():
            try:
                ast.literal_eval(repr(value))
            except (SyntaxError, ValueError) as error:
                raise ValueError(f'the test pipeline must hold plain values to be saved in an ONNX file, got {key}='
                                 f'{value!r} of {transform["type"]}') from error
    return repr(pipeline)


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
