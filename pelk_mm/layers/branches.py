"""Parallel depthwise convolutions that merge exactly into the fewest for deployment (as RepLKNet re-parameterises)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .recomputation import count_statistics_once


class ReparamDepthwiseConv(nn.Module):
    """Sum of parallel depthwise convolutions, each followed by its norm, plus the embedding's constant.

    The first convolution is the large one. :meth:`switch_to_deploy` folds every norm into its convolution and every
    convolution that fits into the fine-grained centre of a larger one into that, so that the sharing is kept: a 5x5
    branch disappears in a peripheral convolution whose centre is 5x5 or more, and stays a branch beside one whose
    centre is smaller.

    Args:
        convs (dict[str, nn.Module]): Depthwise convolutions of the same channels with ``weight`` (C, 1, kh, kw),
            ``bias`` and stride 1. Kernels merge into one that has room for them in its ``fine_shape``, see
            :class:`PeripheralConv2d`; for an ``nn.Conv2d`` that is its kernel size.
        channels (int): C.
        norm (Callable[[int], nn.Module], optional): Makes the norm after each convolution, for instance
            ``nn.BatchNorm2d``. None leaves it out; then the convolutions should have a bias.
    """

    def __init__(self,
                 convs: dict[str, nn.Module],
                 channels: int,
                 norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(convs)
        self.norms = nn.ModuleDict({name: norm(channels) for name in convs} if norm else {})

    @property
    def large(self) -> nn.Module:
        """The first convolution, which the positional embedding belongs to."""
        return next(iter(self.convs.values()))

    @count_statistics_once
    def forward(self, x: Tensor, position_cell_sums: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            x (Tensor): (N, C, H, W).
            position_cell_sums (Tensor, optional): (C, k', k') from :class:`KernelPositionEmbedding`; its constant is
                added after the norm, which would cancel it.

        Returns:
            Tensor: (N, C, H, W).
        """
        out = None
        for name, conv in self.convs.items():
            branch = conv(x)
            if name in self.norms:
                branch = self.norms[name](branch)
            out = branch if out is None else out + branch
        assert out is not None, 'there is at least the large convolution'
        if position_cell_sums is not None:
            out = out + self.large.position_bias(position_cell_sums).to(out.dtype)[:, None, None]
        return out

    def check_norms(self, prefix: str = '') -> None:
        """Check that every norm can be folded into its convolution.

        Args:
            prefix (str): Precedes the norms' names in the message.

        Raises:
            TypeError: If a norm is not a BatchNorm.
            ValueError: If a norm has no running statistics, so that its output depends on the batch.
        """
        for name, norm in self.norms.items():
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
                raise TypeError(f'only BatchNorm folds into a convolution, {prefix}norms.{name} is a '
                                f'{type(norm).__name__}: leave the model in its training form')
            if norm.running_mean is None or norm.running_var is None:
                raise ValueError(
                    f'{prefix}norms.{name} has no running statistics (track_running_stats=False), so it normalises by '
                    'those of each batch and cannot be folded into a convolution: leave the model in its training '
                    'form, which evaluates as it is, or train with track_running_stats=True')

    @torch.no_grad()
    def switch_to_deploy(self, position_cell_sums: Tensor | None = None) -> None:
        """Merge norms, branches and the embedding's constant, in place. The outputs stay equal within rounding.

        Args:
            position_cell_sums (Tensor, optional): As in :meth:`forward`, which must not get it afterwards.

        Raises:
            TypeError, ValueError: As :meth:`check_norms`; nothing is changed then.
        """
        self.check_norms()
        constant = None if position_cell_sums is None else self.large.position_bias(position_cell_sums)
        for name, norm in self.norms.items():
            _fold_norm(self.convs[name], norm)
        self.norms = nn.ModuleDict()
        for name in reversed(list(self.convs)[1:]):
            small = self.convs[name]
            host = next((conv for other, conv in self.convs.items() if other != name and _fits(small, conv)), None)
            if host is None:
                continue
            host.weight += _pad_center(small, host)
            if isinstance(small.bias, Tensor):
                _add_bias(host, small.bias)
            del self.convs[name]
        if constant is not None:
            _add_bias(self.large, constant)


def _fold_norm(conv: Any, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    # A new bias would not be trained further.
    conv.bias.requires_grad_(conv.weight.requires_grad)


def _add_bias(conv: nn.Module, bias: Tensor) -> None:
    if conv.bias is None:
        conv.bias = nn.Parameter(bias.detach().clone())
    else:
        conv.bias += bias


def _fine_shape(conv: nn.Module) -> tuple[int, int]:
    return getattr(conv, 'fine_shape', None) or tuple(conv.weight.shape[-2:])


def _fits(small: nn.Module, host: nn.Module) -> bool:
    """Return whether every tap of ``small`` lies on a tap of ``host`` that has its own parameter."""
    if hasattr(small, 'fine_shape'):
        return False
    return all(a <= b for a, b in zip(small.weight.shape[-2:], _fine_shape(host)))


def _pad_center(small: nn.Module, host: nn.Module) -> Tensor:
    """Pad the weight of ``small`` with zeros to the size of the weight of ``host``."""
    weight = cast(Tensor, small.weight)
    pad_h, pad_w = ((size - own) // 2 for size, own in zip(host.weight.shape[-2:], weight.shape[-2:]))
    return F.pad(weight, (pad_w, pad_w, pad_h, pad_h))
