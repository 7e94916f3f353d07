"""Arguments of the networks: named sizes, and checks whose errors say what is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from math import inf
from typing import Any

from torch import nn

SIZES = dict(
    tiny=dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
    small=dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
    base=dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    # From no paper: for tests and small data.
    atto=dict(depths=(1, 1, 2, 1), channels=(24, 48, 96, 192)),
    pico=dict(depths=(2, 2, 6, 2), channels=(48, 96, 192, 384)))
# By the ending of an arch's name: SLaK's widths, which leave the cost as it is with 40 % of the weights zero, and those
# of ConvNeXt.
WIDTH_FACTORS = {'': 1.3, '-w1': 1.0}


def resolve_arch(arch_settings: Mapping[str, dict], arch: str | dict, optional: Mapping[str, Any] | None = None,
                 **given: Any) -> dict[str, Any]:
    """Return the settings of an arch, replaced by those that are given.

    Args:
        arch_settings (Mapping[str, dict]): The settings of each name of ``arch``, with the same keys for each name.
        arch (str | dict): A name, or the settings themselves.
        optional (Mapping[str, Any], optional): Settings that a dict may leave out, with their defaults.
        **given (Any): Settings in place of the arch's; None keeps the arch's.

    Returns:
        dict[str, Any]: The settings; ``depths`` and ``channels`` are tuples of positive ints, one for each stage, and
        ``kernel_sizes`` is a sequence of that length.

    Raises:
        ValueError: If the arch is unknown, lacks a setting or has one too many, or a setting does not fit the stages.
    """
    optional = optional or {}
    if isinstance(arch, str):
        if arch not in arch_settings:
            near = get_close_matches(arch, arch_settings, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'arch must be a dict or one of {sorted(arch_settings)}, got {arch!r}{hint}')
        arch = arch_settings[arch]
    known = set(next(iter(arch_settings.values())))
    required = known - set(optional)
    if not isinstance(arch, dict) or not required <= set(arch) <= known:
        also = f' and may have {sorted(optional)}' if optional else ''
        raise ValueError(f'arch as a dict must have the keys {sorted(required)}{also}, got {arch!r}')
    settings = {**optional, **arch, **{name: value for name, value in given.items() if value is not None}}
    depths = positive_ints('depths', settings['depths'])
    channels = positive_ints('channels', settings['channels'], length=len(depths))
    kernel_sizes = one_per_stage('kernel_sizes', settings['kernel_sizes'], len(depths))
    return dict(settings, depths=depths, channels=channels, kernel_sizes=kernel_sizes)


def resolve_widths(channels: Sequence[int], width_factor: float) -> tuple[int, ...]:
    """Return the widths of the stages, ``int(channels * width_factor)``."""
    check_number('width_factor', width_factor, 'positive', lambda factor: 0 < factor < inf)
    widths = tuple(int(width * width_factor) for width in channels)
    if not all(widths):
        raise ValueError(f'width_factor must leave every stage a channel, got {width_factor} for {channels}')
    return widths


def check_number(name: str,
                 value: Any,
                 expected: str,
                 holds: Callable[[Any], bool],
                 kinds: type | tuple[type, ...] = (int, float)) -> None:
    """Raise unless an argument is a number of one of the ``kinds`` for which ``holds`` is true."""
    if isinstance(value, bool) or not isinstance(value, kinds) or not holds(value):
        raise ValueError(f'{name} must be {expected}, got {value!r}')


def check_odd(name: str, value: Any, optional: bool = False) -> None:
    """Raise unless an argument is a positive odd int, or None where it is optional."""
    if value is not None or not optional:
        check_number(name, value, f'{"None or " if optional else ""}a positive odd number',
                     lambda size: size > 0 and size % 2 == 1, kinds=int)


def check_factory(name: str, value: Any, example: str) -> None:
    """Raise unless an argument is a class or function that makes modules, not a module or a config."""
    if isinstance(value, nn.Module) or not callable(value):
        raise ValueError(f'{name} must be a class or function that makes a module, such as {example}, got {value!r}; '
                         'configs of MMEngine are for pelk_mm.models')


def positive_ints(name: str, values: Sequence[int], length: int | None = None) -> tuple[int, ...]:
    """Return the values of an argument, checked: ints from 1, ``length`` of them."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(
            isinstance(value, int) and value > 0 for value in values) or not values:
        raise ValueError(f'{name} must be a sequence of positive ints, got {values!r}')
    return tuple(values if length is None else one_per_stage(name, values, length))


def one_per_stage(name: str, values: Sequence, length: int) -> Sequence:
    """Return the values of an argument, checked: a sequence of one entry for each stage."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f'{name} must be a sequence of one entry per stage, got {values!r}')
    if len(values) != length:
        raise ValueError(f'{name} must have one entry per stage ({length}, as depths has), got {len(values)}: '
                         f'{list(values)}')
    return values


def stage_indices(out_indices: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Return the stages of ``out_indices``, which may count from the last one, in order."""
    indices = [out_indices] if isinstance(out_indices, int) else out_indices
    if not isinstance(indices, Sequence) or not indices or not all(
            isinstance(index, int) and -num_stages <= index < num_stages for index in indices):
        raise ValueError(f'out_indices must be one or more of {-num_stages} ... {num_stages - 1}, got {out_indices!r}')
    return tuple(sorted({index % num_stages for index in indices}))
