"""Random weights that make mistakes visible, and integers; imports only PyTorch."""

from __future__ import annotations

import torch
from torch import nn


def randomise(model: nn.Module, seed: int = 0, scale: float = 4) -> nn.Module:
    """Draw every weight and statistic of a model anew, as if it were trained, so that nothing cancels by being 0 or 1.

    Args:
        model (nn.Module): Changed in place.
        seed (int): Of the numbers. Defaults to 0.
        scale (float): Width of the range, around 0, of weights with two or more axes, before it is divided by the root
            of their number for one output. Defaults to 4.

    Returns:
        nn.Module: The model.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.rand(value.shape, generator=generator)
        if value.ndim == 1:
            value.copy_(noise - 0.5 if name.endswith(('bias', 'mean')) else 0.5 + noise)
        else:
            # Of no inputs there is nothing to divide.
            value.copy_((noise - 0.5) * scale / max(value[0].numel(), 1)**0.5)
    return model


def whole_numbers(generator: torch.Generator, *size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Draw a tensor of numbers from -3 to 3, whose sums are exact as long as the dtype holds them."""
    return torch.randint(-3, 4, size, generator=generator).to(dtype)
