"""One tolerance table for every op test, and the error measure it is stated in."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE_ERROR = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 3e-3,
    torch.float16: 4e-4,
}
"""Bound on :func:`relative_error` against fp64 computed from the same (rounded) inputs.

fp32: the project's bound, for means 0 to 100, maps 7x7 to 512x512, K 3 to 151. bf16 and fp16: rounding once after
accumulating in fp32 costs about 1.7e-3 and 2.1e-4 (2**-8 = 3.9e-3 and 2**-11 = 4.9e-4 for an unlucky number). Only the
reference's gradient of theta is over it (up to 5e-3 in bf16): it rounds the dense kernel's gradient before summing it.
"""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ``|actual - expected| / |expected|`` in Euclidean norm, computed in fp64; 0 for two empty tensors.

    NaN or inf anywhere gives NaN or inf, which no bound passes.
    """
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    norm = expected.norm()
    error = (actual - expected).norm()
    return float(error / norm) if norm > 0 else float(error)


def assert_close(actual: Tensor, expected: Tensor, name: str = 'result', bound: float | None = None) -> None:
    """Raise unless ``actual`` has the shape of ``expected`` and is within the bound of its dtype.

    Args:
        actual (Tensor): What is tested; its dtype chooses the bound.
        expected (Tensor): The same in fp64.
        name (str): Its name in the message.
        bound (float, optional): In place of the table's.

    Raises:
        AssertionError: With the error, the bound and the shapes.
    """
    assert actual.shape == expected.shape, f'{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}'
    bound = RELATIVE_ERROR[actual.dtype] if bound is None else bound
    error = relative_error(actual, expected)
    assert error <= bound, f'{name}: relative error {error:.2e} over the bound {bound:.0e} of {actual.dtype}'
