"""Two forms of one model on the same images: a deployed model, or an exported file, beside the trained model."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import mmcv
import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..analysis.inputs import count_channels, fit_channels
from ..engine.nan_tracing import nested_tensors
from .export import ImageModel, segmentation_logits
from .inference import ExportedModel, Network, exported_network, predict

# This share of the pixels may differ although logits are equal within rounding: ties fall either way.
TIES = 1e-3
# Maps of ids, of binary segmentors as floats.
_MAPS = ('pred_sem_seg', 'pred_panoptic_seg')


def _errors(expected: Tensor, got: Tensor) -> Tensor:
    """Return absolute errors, infinite where a value is not finite."""
    return (expected - got).abs().double().nan_to_num(float('inf'), float('inf'))


@dataclass
class Difference:
    """Errors of one output over all images.

    Attributes:
        name (str): Name of the module, or ``output``.
        alone (bool): Whether the module was given the reference's input, so that errors before it do not count.
        maximum (float): Largest absolute error.
        mean (float): Mean absolute error.
        magnitude (float): Largest absolute value of the reference.
    """

    name: str
    alone: bool
    maximum: float = 0.0
    magnitude: float = 0.0
    total: float = field(default=0.0, repr=False)
    count: int = field(default=0, repr=False)

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)

    @property
    def relative(self) -> float:
        """``maximum`` as a share of ``magnitude``."""
        if self.maximum == float('inf'):
            return self.maximum
        return self.maximum / max(self.magnitude, torch.finfo(torch.float32).tiny)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        names = ('name', 'alone', 'maximum', 'mean', 'magnitude', 'relative')
        return {name: getattr(self, name) for name in names}

    def add(self, expected: Sequence[Tensor], got: Sequence[Tensor]) -> None:
        """Compare the outputs for one more image. NaN, or another shape, is an infinite error."""
        if [value.shape for value in expected] != [value.shape for value in got]:
            self.maximum = float('inf')
            return
        for reference, value in zip(expected, got):
            error = _errors(reference, value)
            if error.numel():
                self.maximum = max(self.maximum, error.max().item())
                self.magnitude = max(self.magnitude, reference.abs().max().item())
                self.total += error.sum().item()
                self.count += error.numel()


@dataclass
class Detections:
    """Final detections before and after, over all images. Not judged: a tie may fall either way in NMS.

    Attributes:
        before (int): Number of detections of the reference.
        after (int): Number of detections of the other model.
        matched (int): Those of the reference for which the other has one of the same class with an IoU above 0.9.
        score_error (float): Largest difference of the scores of matched ones.
    """

    before: int = 0
    after: int = 0
    matched: int = 0
    score_error: float = 0.0

    def add(self, expected: Any, got: Any) -> None:
        """Add one image's ``pred_instances`` of both."""
        self.before += len(expected)
        self.after += len(got)
        if not len(expected) or not len(got):
            return
        overlap = box_iou(expected.bboxes, got.bboxes) * (expected.labels[:, None] == got.labels)
        best, index = overlap.max(1)
        close = best > 0.9
        self.matched += int(close.sum())
        if close.any():
            self.score_error = max(self.score_error, (expected.scores - got.scores[index])[close].abs().max().item())


@dataclass
class Predictions:
    """Final predictions of two forms of a model, over all images.

    Attributes:
        images (int): How many were compared.
        decisions (int): Labels and pixels of maps. Of each class of each image it is one whether it is predicted.
        equal (int): Those that are the same.
        images_equal (int): Images of which all are the same: of a classifier, those with the same label.
        score_error (float): Largest difference of scores and of other predicted numbers, as a share of the largest
            value where that is above 1; infinite if one form predicts something that the other does not.
        detections (Detections | None): Boxes, where there are any.
        has_instances (bool): Whether instances are found, of which ties in NMS decide: these predictions are not to be
            judged.
    """

    images: int = 0
    decisions: int = 0
    equal: int = 0
    images_equal: int = 0
    score_error: float = 0.0
    detections: Detections | None = None
    has_instances: bool = False

    @property
    def differing(self) -> float:
        """The share of decisions that differ."""
        return 1 - self.equal / self.decisions if self.decisions else 0.0

    @property
    def error(self) -> float:
        """The largest of ``differing`` and ``score_error``."""
        return max(self.differing, self.score_error)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        names = ('images', 'images_equal', 'decisions', 'equal', 'score_error')
        numbers = {name: getattr(self, name) for name in names}
        return dict(predictions=numbers, detections=self.detections and vars(self.detections))

    def __str__(self) -> str:
        parts = []
        if self.decisions:
            parts.append(f'{self.decisions - self.equal} of {self.decisions} decisions differ')
        parts.append(f'scores by at most {self.score_error:.1e}')
        found = [f'final predictions: {", ".join(parts)}'] if self.decisions or self.score_error else []
        if self.detections is not None:
            each = self.detections
            found.append(f'detections: {each.before} before, {each.after} after, {each.matched} the same with scores '
                         f'that differ by at most {each.score_error:.1e}')
        return '; '.join(found)

    def add(self, expected: BaseDataElement, got: BaseDataElement) -> None:
        """Add one image's data samples of both."""
        self.images += 1
        self.has_instances |= 'pred_instances' in expected or 'pred_panoptic_seg' in expected
        if 'pred_instances' in expected:
            self.detections = self.detections or Detections()
            self.detections.add(expected.pred_instances, got.pred_instances)
        before, after = dict(_predicted(expected)), dict(_predicted(got))
        shapes = [{name: value.shape for name, value in each.items()} for each in (before, after)]
        if shapes[0] != shapes[1]:
            self.score_error = float('inf')
        if self.score_error == float('inf'):
            return
        wrong = self.decisions - self.equal
        for name, value in before.items():
            if not value.is_floating_point():
                self.decisions += value.numel()
                self.equal += int((value == after[name]).sum())
            elif value.numel():
                error = _errors(value, after[name]).max().item()
                self.score_error = max(self.score_error, error / max(value.abs().max().item(), 1.0))
        self.images_equal += wrong == self.decisions - self.equal


def _predicted(sample: BaseDataElement, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    """Yield decisions as integers or booleans and scores as floats, with their names; instances aside."""
    for name, value in sample.items():
        if name in _MAPS:
            value = value.get('data', value.get('sem_seg'))
            yield prefix + name, value.long()
        elif name == 'pred_label' and not value.is_floating_point() and 'pred_score' in sample:
            # Of several labels the order is not a decision, and the number may differ.
            absent = torch.zeros_like(sample.pred_score, dtype=torch.bool)
            yield prefix + name, absent.index_fill(0, value.flatten(), True)
        elif name.startswith('pred_') and name != 'pred_instances':
            value = value.get('data') if isinstance(value, BaseDataElement) else value
            if isinstance(value, Tensor):
                yield prefix + name, value
        elif isinstance(value, BaseDataElement) and not name.startswith(('gt_', 'pred_', 'ignored_', 'proposals')):
            # A task of several.
            yield from _predicted(value, f'{prefix}{name}.')


@torch.no_grad()
def compare(reference: nn.Module, other: nn.Module, layers: Sequence[str],
            batches: Iterable[dict]) -> tuple[list[Difference], Predictions]:
    """Run both models on the same images.

    Args:
        reference (nn.Module): The model as it was trained, in eval mode, on the CPU or a GPU.
        other (nn.Module): Its deployed form, on the same device.
        layers (Sequence[str]): Modules of both whose outputs must be equal for equal inputs. Each is given the input
            that the reference's has; so are the heads of a two-stage detector, as the proposals that reach them may
            differ by ties.
        batches (Iterable[dict]): As the models' data preprocessors take them.

    Returns:
        tuple[list[Difference], Predictions]: Layers; then stages, backbone, neck and heads in place; then, except
        for two-stage detectors, the ``output``: a segmentor's logits at the size of the images, of others the result
        of ``mode='tensor'``. And the final predictions.
    """
    two_stage = hasattr(reference, 'roi_head')
    alone = {name: Difference(name, True) for name in [*layers, *(_roi_heads(reference) if two_stage else ())]}
    placed = {name: Difference(name, False) for name in _parts(other) if name not in alone}
    output, predictions = Difference('output', False), Predictions()
    for batch in batches:
        # Preprocessors write into the samples, as predict() does into its copy.
        inputs = reference.data_preprocessor(copy.deepcopy(batch), False)
        kept: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
        hooks = {name: _comparing(other.get_submodule(name), difference) for name, difference in alone.items()}
        with _hooked(reference, hooks), _hooked(reference, {name: _keeping(kept[0], name) for name in placed}):
            expected = predict(reference, batch) if two_stage else _run(reference, inputs)
        with _hooked(other, {name: _keeping(kept[1], name) for name in placed}):
            got = predict(other, batch) if two_stage else _run(other, inputs)
        for name, values in kept[0].items():
            placed[name].add(values, kept[1].get(name, []))
        if not two_stage:
            output.add(list(nested_tensors(expected)), list(nested_tensors(got)))
            expected, got = predict(reference, batch), predict(other, batch)
        for before, after in zip(expected, got):
            predictions.add(before, after)
    found = [*alone.values(), *placed.values(), *(() if two_stage else (output, ))]
    return [difference for difference in found if difference.count or difference.maximum], predictions


def _run(model: nn.Module, inputs: dict) -> Any:
    # mode='tensor' leaves out the work of a head beside its forward(), and some cannot run in it.
    if hasattr(model, 'encode_decode'):
        return segmentation_logits(model, inputs['inputs'])
    return model(inputs['inputs'], inputs.get('data_samples'), mode='tensor')


def _roi_heads(model: nn.Module) -> list[str]:
    """Return the names of box and mask heads of a two-stage detector, one or several of each."""
    names = []
    for name, head in model.get_submodule('roi_head').named_children():
        if name.endswith('_head'):
            several = isinstance(head, nn.ModuleList)
            names += [f'roi_head.{name}.{i}' for i, _ in head.named_children()] if several else [f'roi_head.{name}']
    return names


def _parts(model: nn.Module) -> list[str]:
    """Return the names of the backbone's stages and the model's parts, in the order of computation."""
    stages = [name for name, _ in model.named_modules() if re.fullmatch(r'backbone\.(stages\.|layer)\d+', name)]
    return stages + [name for name, _ in model.named_children() if name != 'data_preprocessor']


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable]) -> Iterator[None]:
    """Run forward hooks, by names of modules, in this context."""
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.enter_context(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        yield


def _keeping(kept: dict[str, list[Tensor]], name: str) -> Callable:
    return lambda module, args, kwargs, output: kept.setdefault(name, []).extend(nested_tensors(output))


def _comparing(module: nn.Module, difference: Difference) -> Callable:
    # Further arguments are what was merged, as the sums of the embedding.
    return lambda _, args, kwargs, output: difference.add(
        list(nested_tensors(output)), list(nested_tensors(module(args[0], **kwargs))))


@dataclass
class Agreement:
    """One output, by name, of an exported file at one size.

    Attributes:
        shape (tuple[int, ...]): Shape of the input, (N, C, H, W).
        maximum (float): Largest absolute difference from PyTorch.
        relative (float): The same as a share of the largest absolute value.
        noise (float): Root of the mean square of the difference, as a share of that of the output.
    """

    shape: tuple[int, ...]
    output: str
    maximum: float
    relative: float
    noise: float


def stack_images(images: Iterable[np.ndarray], size: Sequence[int], channels: int = 3) -> np.ndarray:
    """Stack images (H, W, C), three channels as BGR, to one input of exported models, of a height and width.

    Returns:
        np.ndarray: (N, channels, H, W), float32, three channels as RGB.

    Raises:
        ValueError: If an image does not have these channels.
    """
    resized = []
    for image in images:
        fitting = mmcv.imresize(fit_channels(image, channels, 'image'), (size[1], size[0])).reshape(*size, channels)
        resized.append((fitting[..., ::-1] if channels == 3 else fitting).transpose(2, 0, 1))
    return np.stack(resized).astype(np.float32)


class ExportedFile(NamedTuple):
    """An exported file that is loaded: the model, None of a package; and its network."""

    model: ExportedModel | None
    run: Network


def open_exported(path: str | Path) -> ExportedFile:
    """Load an exported file, ``.onnx``, ``.xml`` or ``.pt2``, once for both comparisons."""
    # A package is a zip archive.
    if is_zipfile(path):
        return ExportedFile(None, torch.export.load(str(path)).module())
    model = ExportedModel(path)
    return ExportedFile(model, model.run_tensors)


@torch.no_grad()
def verify_outputs(model: ImageModel, path: str | Path | ExportedFile, inputs: Iterable[np.ndarray]) -> list[Agreement]:
    """Compare the outputs of an exported file with those of the model in PyTorch.

    The model has its own operations, ``kernel_form=None``; inputs (N, C, H, W), float32, may each have another shape.
    """
    (_, run), found = path if isinstance(path, ExportedFile) else open_exported(path), []
    for images in map(torch.from_numpy, inputs):
        for name, expected, got in zip(model.output_names(), model(images), run(images)):
            difference = Difference(name, False)
            difference.add([expected], [got])
            noise = ((expected - got).norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny)).item()
            found.append(Agreement(tuple(images.shape), name, difference.maximum, difference.relative, noise))
    return found


def verify_predictions(model: nn.Module, task: str, path: str | Path | ExportedFile,
                       batches: Iterable[dict]) -> Predictions:
    """Compare final predictions with an exported file to those of the model in testing, by the same head.

    Of a classifier or segmentor these are :class:`ExportedModel`'s. Of a package or a detector ``model``, the one that
    was exported, on the CPU, predicts with the file's outputs in place of its own network's. Batches are images as the
    test pipeline gives them, collated.
    """
    found, (exported, run) = Predictions(), path if isinstance(path, ExportedFile) else open_exported(path)
    for batch in batches:
        expected = predict(model, batch)
        if exported is not None and task != 'detection':
            got = exported.predict_batch(batch)
        else:
            with exported_network(model, task, run, count_channels(model)):
                got = predict(model, batch)
        for before, after in zip(expected, got):
            found.add(before, after)
    return found
