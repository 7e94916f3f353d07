"""Find the weights in a checkpoint: which entry holds them, raw or averaged."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..nets.weight_files import AVERAGED_ENTRIES, ENTRIES
from .loading import safe_load

# The two sets of weights of training with EMA: as the optimiser left them, and their average.
WEIGHTS = ('raw', 'averaged')

# What a published checkpoint keeps.
PUBLISHED = ('meta', 'state_dict')


def check_choice(weights: str | None, key: str | None = None, owner: str = '') -> None:
    """Check the two arguments that choose weights; messages put ``owner``, e.g. ``'init_cfg.'``, before their names.

    Raises:
        ValueError: If ``weights`` has another value, or both are given.
    """
    if weights not in (None, *WEIGHTS):
        raise ValueError(f'{owner}weights must be None or one of {WEIGHTS}, got {weights!r}')
    if key is not None and weights is not None:
        raise ValueError(f'{owner}key names an entry and {owner}weights finds it: give one of them, got {key!r} and '
                         f'{weights!r}')


def add_weights_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--weights {raw,averaged}`` to a tool that loads checkpoints; its help names the ``default``."""
    parser.add_argument(
        '--weights',
        choices=WEIGHTS,
        help=f'weights to take of a checkpoint of training with EMA, which holds both; by default {default}')


def find_weights(content: Any,
                 weights: str | None = None,
                 source: str = 'the checkpoint',
                 key: str | None = None) -> tuple[Mapping, str | None]:
    """Choose raw or averaged weights of a checkpoint by name, wherever its code base puts them.

    MMEngine's EMAHook saves the averaged weights as ``state_dict`` and the raw ones as ``ema_state_dict``; other code
    saves the raw ones as ``state_dict`` or ``model``, and the averaged ones in one of :data:`AVERAGED_ENTRIES`. Where
    there is one set, it counts as raw, unless its meta data name it as averaged, as
    :func:`pelk_mm.checkpoints.publish.publish_file` does.

    Args:
        content (Any): The loaded content.
        weights (str, optional): ``'raw'`` or ``'averaged'``. None takes the raw ones of two sets, or the one set that
            there is. Defaults to None.
        source (str): The name of the checkpoint in an error.
        key (str, optional): Entry to take instead of ``weights``. Defaults to None.

    Returns:
        tuple[Mapping, str | None]: The weights by name, and the entry that held them, None for the content itself.

    Raises:
        ValueError: If ``weights`` has another value, both it and ``key`` are given, or the checkpoint lacks them.
    """
    check_choice(weights, key)
    content = _as_mapping(content, source)
    if key is not None:
        if not isinstance(content.get(key), Mapping):
            entries = sorted(str(name) for name, value in content.items() if isinstance(value, Mapping))
            raise ValueError(f'key must be an entry of {source} that holds tensors by name, got {key!r}, there are '
                             f'{entries}')
        return content[key], key
    entry = _first_mapping(content, ENTRIES)
    found: dict[str, tuple[Mapping, str | None]] = {}
    if saved_by_ema_hook(content):
        raw = {name.removeprefix('module.'): value for name, value in content['ema_state_dict'].items()}
        del raw['steps']
        found = dict(raw=(raw, 'ema_state_dict'), averaged=(content['state_dict'], 'state_dict'))
    else:
        meta = content.get('meta')
        kind = meta.get('weights') if isinstance(meta, Mapping) else None
        found[kind if kind in WEIGHTS else 'raw'] = (content if entry is None else content[entry], entry)
        averaged = _first_mapping(content, AVERAGED_ENTRIES)
        if averaged is not None:
            found['averaged'] = (content[averaged], averaged)
    if weights is not None and weights not in found:
        only, = found
        raise ValueError(f'weights={weights!r}, but {source} has one set of weights, which are {only}: '
                         + ('it was trained without EMAHook, or is no checkpoint of training' if only == 'raw' else
                            'the raw ones were left out when it was published or deployed'))
    return found[weights or next(kind for kind in WEIGHTS if kind in found)]


def named_tensors(content: Mapping) -> dict[str, Tensor]:
    """Return the tensors among the values of a mapping, by name."""
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def saved_by_ema_hook(content: Mapping) -> bool:
    """Return whether a checkpoint has the weights of MMEngine's EMAHook: averaged in ``state_dict``, raw beside it."""
    raw = content.get('ema_state_dict')
    return isinstance(raw, Mapping) and 'steps' in raw and isinstance(content.get('state_dict'), Mapping)


def load_weights_and_meta(source: str,
                          weights: str | None = None) -> tuple[Mapping[str, Any], dict[str, Any], list[str]]:
    """Load the weights and meta data that MMEngine saves of a model.

    Args:
        source (str): Path or URL.
        weights (str, optional): ``'raw'`` or ``'averaged'``; see :func:`find_weights`. By default the ``state_dict``,
            which holds the averaged ones where EMAHook was used.

    Returns:
        tuple[Mapping[str, Any], dict[str, Any], list[str]]: The weights; the meta data, empty if absent, to
        which an entry ``weights`` is added where EMAHook was used; and the names of the other entries, sorted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds more than plain data, has no ``state_dict`` with names, or no dict as its meta data.
    """
    content = _as_mapping(safe_load(source), source)
    state_dict = content.get('state_dict')
    if not isinstance(state_dict, Mapping):
        raise ValueError(f'{source} must be a checkpoint with a state_dict, it has {sorted(map(str, content))[:5]}')
    if weights is not None:
        state_dict, _ = find_weights(content, weights, source)
    unnamed = [name for name in state_dict if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f'{source} must have only names in its state_dict, got {unnamed[0]!r}')
    meta = content.get('meta') or {}
    if not isinstance(meta, Mapping):
        raise ValueError(f'{source} must have a dict as its meta data, got a {type(meta).__name__}')
    if saved_by_ema_hook(content):
        meta = dict(meta, weights=weights or 'averaged')
    # The mapping itself: PyTorch's has the versions of the modules as an attribute.
    return state_dict, dict(meta), sorted(str(name) for name in content if name not in PUBLISHED)


def _as_mapping(content: Any, source: str) -> Mapping:
    if not isinstance(content, Mapping):
        raise ValueError(f'{source} must hold a dict of tensors, or of dicts of tensors, got a '
                         f'{type(content).__name__}: it is no checkpoint of a model')
    return content


def _first_mapping(content: Mapping, entries: tuple[str, ...]) -> str | None:
    return next((name for name in entries if isinstance(content.get(name), Mapping)), None)
