"""Models made ready for export: modules whose operations exporters know, for images of any size."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

from ..layers import PeripheralConv2d

FORMS = ('fast', 'dense')


def prepare_for_export(model: nn.Module, form: str = 'fast') -> nn.Module:
    """Replace what exporters know for fixed sizes alone, or not at all.

    Args:
        model (nn.Module): It is left as it is.
        form (str): ``'fast'`` keeps peripheral convolutions: ONNX gets box sums and a matrix product, a package the
            operator of ``pelk_mm.ops``. ``'dense'`` makes depthwise convolutions with the expanded kernels of them.

    Returns:
        nn.Module: A copy for inference.

    Raises:
        ValueError: If ``form`` is unknown.
    """
    if form not in FORMS:
        raise ValueError(f'form must be one of {FORMS}, got {form!r}')
    model = copy.deepcopy(model).requires_grad_(False)
    # Not chained: some backbones of the toolboxes return nothing.
    model.eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, PeripheralConv2d) and form == 'dense':
            model.set_submodule(name, _dense_conv(module))
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            model.set_submodule(name, AveragePoolByProducts(module.output_size))
    return model


def _no_sizes(_) -> tuple[int, int]:
    return 0, 0


@contextmanager
def free_sizes() -> Iterator[None]:
    """Let mmseg's ``resize`` leave sizes open while a model is traced.

    With ``align_corners`` it makes numbers of both sizes, only to warn, which would fix them in the graph.
    """
    wrappers = sys.modules.get('mmseg.models.utils.wrappers')
    if wrappers is None:
        yield
        return
    with mock.patch.object(wrappers, 'tuple', new=_no_sizes, create=True):
        yield


class AveragePoolByProducts(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, for maps of any size.

    Args:
        output_size (int | tuple[int | None, int | None], optional): Height and width of the result; None is that of
            the map.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None] | None) -> None:
        super().__init__()
        self.output_size = output_size if isinstance(output_size, tuple) else (output_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, *output_size)."""
        counts = (size if count is None else count for count, size in zip(self.output_size, x.shape[-2:]))
        rows, cols = (self._shares(count, size, x) for count, size in zip(counts, x.shape[-2:]))
        return rows @ x @ cols.transpose(0, 1)

    @staticmethod
    def _shares(count: int, size: int, like: Tensor) -> Tensor:
        """(count, size): bin i averages the positions floor(i size / count) ... ceil((i + 1) size / count) - 1."""
        bins = torch.arange(count, device=like.device)[:, None]
        start, end = bins * size // count, ((bins + 1) * size + count - 1) // count
        positions = torch.arange(size, device=like.device)
        inside = (positions >= start) & (positions < end)
        return inside.to(like.dtype) / (end - start).to(like.dtype)


def _dense_conv(conv: PeripheralConv2d) -> nn.Conv2d:
    size = conv.grid.kernel_size
    dense = nn.Conv2d(
        conv.channels, conv.channels, size, padding=size // 2, groups=conv.channels, bias=conv.bias is not None)
    dense.weight = nn.Parameter(conv.kernel().detach().unsqueeze(1), requires_grad=False)
    if conv.bias is not None:
        dense.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
    return dense
