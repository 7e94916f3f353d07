"""Compare nested containers of tensors, such as checkpoints."""

from __future__ import annotations

from typing import Any

import torch


def assert_same(actual: Any, expected: Any, where: str = '') -> None:
    """Raise unless two values are equal bit for bit, of one type and, where they are tensors, of one dtype.

    Args:
        actual (Any): A tensor, a dict, list or tuple of such values, or anything that can be compared.
        expected (Any): The other one.
        where (str): Its name in the message; keys and indices are added, after dots.

    Raises:
        AssertionError: With the place of the first difference.
    """
    assert type(actual) is type(expected), f'{where}: {type(actual).__name__}, expected {type(expected).__name__}'
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys(), f'{where}: keys {list(actual)}, expected {list(expected)}'
        for key in actual:
            assert_same(actual[key], expected[key], f'{where}.{key}')
    elif isinstance(actual, (list, tuple)):
        assert len(actual) == len(expected), f'{where}: {len(actual)} values, expected {len(expected)}'
        for index, value in enumerate(actual):
            assert_same(value, expected[index], f'{where}.{index}')
    elif isinstance(actual, torch.Tensor):
        assert actual.dtype == expected.dtype, f'{where}: {actual.dtype}, expected {expected.dtype}'
        assert torch.equal(actual, expected), f'{where}: other values'
    else:
        assert actual == expected, f'{where}: {actual!r}, expected {expected!r}'
