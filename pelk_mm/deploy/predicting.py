"""Predictions by a model's own code, from the outputs that its exported network computed elsewhere.

What turns logits into labels, a softmax, a threshold, the best k, windows that slide over the image, is the model's. It
runs here as it runs in testing; only the network within is another: in place of a segmentor's ``encode_decode``, of the
``forward`` of a classifier's heads, or of that of a detector's backbone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ..analysis.inputs import normalisation, swaps_colours

# Images (N, C, H, W), 0 ... 255, RGB, to the outputs of the network.
Network = Callable[[Tensor], Sequence[Tensor]]


def exported_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Return a classifier's heads by the names of their outputs: ``logits``, or ``<task>`` of a multi-task head.

    Raises:
        ValueError: If the model has no head that predicts.
    """
    head: Any = getattr(model, 'head', None)
    if not callable(getattr(head, 'predict', None)) or not hasattr(model, 'extract_feat'):
        raise ValueError(f'model must be a classifier with a head, got {type(model).__name__} with '
                         f'{type(head).__name__}')
    return _leaves(head, '') if hasattr(head, 'task_heads') else dict(logits=head)


def _leaves(head: nn.Module, prefix: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, child in head.task_heads.items():
        # PyTorch 2.7 cannot trace the operator |=.
        found.update(_leaves(child, f'{prefix}{name}.') if hasattr(child, 'task_heads') else {f'{prefix}{name}': child})
    return found


def segmentation_logits(model: Any, images: Tensor) -> Tensor:
    """Return a segmentor's logits (N, out_channels, H, W) at the size of its normalised images (N, C, H, W).

    Raises:
        ValueError: If the model has no ``encode_decode``, the part of a segmentor that sees one window.
    """
    if not hasattr(model, 'encode_decode'):
        raise ValueError(f'model must be a segmentor with encode_decode(), got {type(model).__name__}')
    size = images.shape[2:]
    return model.encode_decode(images, [dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)])


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
    """Let ``model`` predict from the outputs of an exported network in this context.

    Args:
        model (nn.Module): A classifier, segmentor or detector. Its own network does not run, and needs no weights.
        task (str): ``'classification'``, ``'segmentation'`` or ``'detection'``.
        network (Callable): The exported network.
        channels (int): How many the images have.
    """
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
