"""SLaK: sparse large kernel network (ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from pelk_mm.layers import Conv2d, DepthwiseBranches
from pelk_mm.registry import MODELS

from .large_kernel_net import SIZES, LargeKernelNet, check_number, positive_ints


@MODELS.register_module()
class SLaK(LargeKernelNet):
    """SLaK backbone for classification, segmentation and detection alike.

    A PyTorch implementation of `More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity
    <https://arxiv.org/abs/2207.03620>`_. Every channel goes through three parallel depthwise convolutions, each with
    its norm, which are summed: a K x N and an N x K stripe and an N x N square. For deployment the square merges into
    a stripe; the two stripes stay, as neither contains the other.

    Args:
        arch (str | dict): A name of ``SLaK.arch_settings`` (``tiny``, ``small``, ``base``, ...) or a dict with
            ``depths``, ``channels`` and ``kernel_sizes``.
        kernel_sizes (Sequence[int], optional): K of each stage in place of the arch's, odd.
        stripe_width (int): N, odd and below every K. Defaults to 5.
        small_kernel (bool): Whether to train the N x N square too. Defaults to True.
        width_factor (float): Every width is ``int(channels * width_factor)``. Defaults to 1.3.
        branch_norm_cfg (dict, optional): Norm after each convolution. Defaults to BatchNorm; None for a bias instead.
        **kwargs: ``depths``, ``channels`` (in place of the arch's), ``in_channels``, ``ffn_ratio``, ``norm_cfg``,
            ``act_cfg``, ``drop_path_rate``, ``layer_scale_init_value``, ``out_indices``, ``frozen_stages``,
            ``gap_before_final_norm``, ``with_cp``, ``deploy`` and ``init_cfg``: see :class:`LargeKernelNet`.

    Raises:
        ValueError: If the arch is unknown, a kernel or the stripe width is even, or a kernel is not above the stripe
            width.
        TypeError: If an argument is unknown.

    Examples:
        >>> import torch
        >>> from pelk_mm.models import SLaK
        >>> model = SLaK('tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
        [(1, 124, 16, 16), (1, 249, 8, 8), (1, 499, 4, 4), (1, 998, 2, 2)]
    """

    arch_settings = {size: dict(**dims, kernel_sizes=(51, 49, 47, 13)) for size, dims in SIZES.items()}

    def __init__(self,
                 arch: str | dict = 'tiny',
                 kernel_sizes: Sequence[int] | None = None,
                 stripe_width: int = 5,
                 small_kernel: bool = True,
                 width_factor: float = 1.3,
                 branch_norm_cfg: Mapping | None = MappingProxyType(dict(type='BN')),
                 **kwargs) -> None:
        settings = self._arch(arch)
        depths = positive_ints('depths', kwargs.pop('depths', settings['depths']))
        channels = kwargs.pop('channels', settings['channels'])
        kernel_sizes = positive_ints(
            'kernel_sizes', settings['kernel_sizes'] if kernel_sizes is None else kernel_sizes, length=len(depths))
        check_number('stripe_width', stripe_width, 'a positive odd number',
                     lambda size: size > 0 and size % 2 == 1, kinds=int)
        if any(size % 2 == 0 or size <= stripe_width for size in kernel_sizes):
            raise ValueError(f'kernel_sizes must be odd and above stripe_width ({stripe_width}), got {kernel_sizes}')
        self.kernel_sizes = kernel_sizes
        self.stripe_width = stripe_width
        self.small_kernel = small_kernel
        super().__init__(depths, channels, width_factor=width_factor, branch_norm_cfg=branch_norm_cfg, **kwargs)

    def build_mixer(self, stage: int, channels: int) -> nn.Module:
        kernel, stripe, bias = self.kernel_sizes[stage], self.stripe_width, self.branch_norm_cfg is None
        shapes = dict(vertical=(kernel, stripe), horizontal=(stripe, kernel))
        if self.small_kernel:
            shapes['small'] = (stripe, stripe)
        convs: dict[str, nn.Module] = {}
        for name, (height, width) in shapes.items():
            padding = (height // 2, width // 2)
            convs[name] = Conv2d(channels, channels, (height, width), padding=padding, groups=channels, bias=bias)
        return DepthwiseBranches(convs, channels, None if bias else self.build_branch_norm)
