"""Say why a neck or head failed, where it and the backbone's outputs do not fit. Nothing is refused beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from torch import nn


@contextmanager
def explaining_misfits(get_model: Callable[[], Any]) -> Iterator[None]:
    """Let an error inside of a neck or head say which arguments of the model to change, if these explain it.

    Args:
        get_model (Callable[[], nn.Module]): Returns the model; called after an error only.

    Raises:
        ValueError: In place of an error that was raised in a neck or head which the outputs of its backbone do not fit.
    """
    try:
        yield
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        advice = _explain(get_model(), error)
        if not advice:
            raise
        raise ValueError(f'{advice}. ({type(error).__name__}: {error})') from error


def _explain(model: Any, error: BaseException) -> str:
    """Return what to change so that a neck or head fits its backbone; '' if that does not explain the error.

    The backbone is one of :mod:`pelk_mm.models`, or another one that has ``out_channels`` and
    ``gap_before_final_norm``, at any depth of the model.
    """
    owners = [frame.f_locals.get('self') for frame, _ in walk_tb(error.__traceback__)]
    raised_in = [owner for owner in owners if isinstance(owner, nn.Module)]
    for parent in model.modules() if isinstance(model, nn.Module) else ():
        backbone = getattr(parent, 'backbone', None)
        if not hasattr(backbone, 'out_channels') or not hasattr(backbone, 'gap_before_final_norm'):
            continue
        for name, part in _parts_behind(parent):
            if any(owner is part for owner in raised_in):
                facts = [*_wrong_form(name, part, backbone, raised_in[-1]), *_wrong_channels(name, part, backbone)]
                if facts:
                    return f'{name} ({type(part).__name__}) does not fit the backbone: {"; ".join(facts)}'
    return ''


def _parts_behind(parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that take the backbone's outputs: the neck, or all heads."""
    neck = getattr(parent, 'neck', None)
    for name, child in [('neck', neck)] if neck is not None else parent.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f'{name}.{index}', part) for index, part in enumerate(child))
        elif name not in ('backbone', 'data_preprocessor'):
            yield name, next(child.children(), child) if isinstance(child, nn.Sequential) else child


def _wrong_form(name: str, part: nn.Module, backbone: Any, innermost: nn.Module) -> Iterator[str]:
    """Yield an error for vectors where maps are taken, or maps where ``head`` of a classifier takes vectors."""
    takes_vectors = isinstance(innermost, nn.Linear) or name == 'head' and innermost is part
    if backbone.gap_before_final_norm and not takes_vectors:
        yield ('the backbone returns averages over its maps, (N, C), and maps are taken: set '
               'model.backbone.gap_before_final_norm=False')
    if not backbone.gap_before_final_norm and isinstance(innermost, nn.Linear) and name == 'head':
        yield ('the backbone returns maps, (N, C, H, W), and averages over them are taken: set '
               'model.backbone.gap_before_final_norm=True')


def _wrong_channels(name: str, part: Any, backbone: Any) -> Iterator[str]:
    """Yield an error for another number of outputs than are taken, or of their channels."""
    outputs, index = backbone.out_channels, None
    channels: Any = getattr(part, 'in_channels', None)
    if type(part).__name__ == 'ChannelMapper':
        # It keeps its convolutions only.
        channels = [conv.in_channels for conv in part.convs.modules() if isinstance(conv, nn.Conv2d)]
    if isinstance(channels, int):
        index = getattr(part, 'in_index', -1)
    elif isinstance(channels, (list, tuple)):
        index = getattr(part, 'in_index', range(len(channels)))
    indices = [index] if isinstance(index, int) else list(index or ())
    if not indices:
        return
    if max(indices) >= len(outputs) or isinstance(index, range) and len(index) != len(outputs):
        yield (f'the backbone returns {len(outputs)} outputs, those of out_indices={backbone.out_indices}, and '
               f'{max(indices) + 1} are taken: set model.backbone.out_indices={tuple(range(max(indices) + 1))}, say')
        return
    given = [outputs[each] for each in indices]
    # Heads that concatenate maps keep the sum.
    if (channels if isinstance(channels, int) else list(channels)) not in (given, sum(given)):
        right = given[0] if isinstance(index, int) else given
        yield f'it takes {channels} channels and gets {right}: set model.{name}.in_channels={right}'
