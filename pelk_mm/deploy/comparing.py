"""Two forms of one model on the same images: errors of every merged layer, of the stages and parts, of the output."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .predicting import segmentation_logits
from .predictions import Predictions


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
        return self.maximum / max(self.magnitude, torch.finfo(torch.float32).tiny)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        names = ('name', 'alone', 'maximum', 'mean', 'magnitude', 'relative')
        return {name: getattr(self, name) for name in names}

    def add(self, expected: Sequence[Tensor], got: Sequence[Tensor]) -> None:
        """Compare the outputs for one more image. What is no number, or has another shape, is an infinite error."""
        if [value.shape for value in expected] != [value.shape for value in got]:
            self.maximum = float('inf')
            return
        for reference, value in zip(expected, got):
            error = (reference - value).abs().double().nan_to_num(float('inf'), float('inf'))
            if error.numel():
                self.maximum = max(self.maximum, error.max().item())
                self.magnitude = max(self.magnitude, reference.abs().max().item())
                self.total += error.sum().item()
                self.count += error.numel()


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
        batches (Iterable[dict]): What the models' data preprocessors take.

    Returns:
        tuple[list[Difference], Predictions]: Layers alone; then stages, backbone, neck and heads in place; then for all
        but two-stage detectors the ``output``: a segmentor's logits at the size of the images, of others what
        ``mode='tensor'`` returns. And the final predictions.
    """
    two_stage = hasattr(reference, 'roi_head')
    alone = [*layers, *(_roi_heads(reference) if two_stage else ())]
    differences = {name: Difference(name, True) for name in alone}
    in_place = [name for name in _parts(other) if name not in differences]
    output = Difference('output', False)
    predictions = Predictions()
    placed = {name: Difference(name, False) for name in in_place}
    for batch in batches:
        batch = reference.data_preprocessor(batch, False)
        kept: dict[str, list[Tensor]] = {}
        with _each_alone(reference, other, alone, differences), _keep(reference, in_place, kept):
            expected = _run(reference, batch, two_stage)
        others: dict[str, list[Tensor]] = {}
        with _keep(other, in_place, others):
            got = _run(other, batch, two_stage)
        for name, values in kept.items():
            placed[name].add(values, others.get(name, []))
        if not two_stage:
            output.add(_tensors(expected), _tensors(got))
        final = (expected, got) if two_stage else (_predict(reference, batch), _predict(other, batch))
        for before, after in zip(*final):
            predictions.add(before, after)
    found = [*differences.values(), *placed.values(), *(() if two_stage else (output, ))]
    return [difference for difference in found if difference.count or difference.maximum], predictions


def _run(model: nn.Module, batch: dict, predict: bool) -> Any:
    if predict:
        return _predict(model, batch)
    # mode='tensor' leaves out what a head does beside its forward(), and some cannot run in it.
    if hasattr(model, 'encode_decode'):
        return segmentation_logits(model, batch['inputs'])
    return model(batch['inputs'], batch.get('data_samples'), mode='tensor')


def _predict(model: nn.Module, batch: dict) -> list:
    # Results are written into the samples.
    samples = copy.deepcopy(batch.get('data_samples'))
    return model(batch['inputs'], samples, mode='predict')


def _roi_heads(model: nn.Module) -> list[str]:
    """Box and mask heads of a two-stage detector, one or a list of each."""
    names = []
    for name, head in model.get_submodule('roi_head').named_children():
        if name.endswith('_head'):
            several = isinstance(head, nn.ModuleList)
            names += [f'roi_head.{name}.{i}' for i, _ in head.named_children()] if several else [f'roi_head.{name}']
    return names


def _parts(model: nn.Module) -> list[str]:
    """The backbone's stages and the model's parts, in the order of computation."""
    stages = [name for name, _ in model.named_modules() if re.fullmatch(r'backbone\.(stages\.|layer)\d+', name)]
    return stages + [name for name, _ in model.named_children() if name != 'data_preprocessor']


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor of a nest."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


@contextmanager
def _keep(model: nn.Module, names: Sequence[str], kept: dict[str, list[Tensor]]) -> Iterator[None]:
    """Keep the outputs of modules in ``kept``."""

    def keep(name: str):
        return lambda module, args, output: kept.setdefault(name, []).extend(_tensors(output))

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _each_alone(reference: nn.Module, other: nn.Module, names: Sequence[str],
                differences: dict[str, Difference]) -> Iterator[None]:
    """Whenever a module of ``reference`` runs, run that of ``other`` on its first input and compare."""

    def run(name: str):
        module = other.get_submodule(name)

        def hook(_, args, kwargs, output):
            # Further arguments are what was merged, as the sums of the embedding.
            differences[name].add(_tensors(output), _tensors(module(args[0], **kwargs)))

        return hook

    handles = [reference.get_submodule(name).register_forward_hook(run(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
