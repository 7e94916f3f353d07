"""SLaK: sparse large kernel network (ICLR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..layers import Conv2d, LayerNorm2d, ReparamDepthwiseConv
from .arguments import SIZES, WIDTH_FACTORS, check_odd, positive_ints, resolve_arch
from .large_kernel_net import LargeKernelNet


class SLaK(LargeKernelNet):
    """SLaK backbone for classification, segmentation and detection.

    A PyTorch implementation of `More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity
    <https://arxiv.org/abs/2207.03620>`_. Every channel goes through three parallel depthwise convolutions, each with
    its norm, which are summed: a K x N and an N x K stripe and a small square. For deployment the square merges into
    a stripe; the two stripes stay, as neither contains the other.

    The arguments from ``in_channels`` on are those of :class:`LargeKernelNet`.

    Args:
        arch (str | dict): A name of ``SLaK.arch_settings`` (``tiny``, ``small``, ``base``, ..., each also ``-w1``, with
            ConvNeXt's widths) or a dict with ``depths``, ``channels``, ``kernel_sizes`` and optionally
            ``width_factor``.
        kernel_sizes (Sequence[int], optional): K of each stage in place of the arch's, odd.
        stripe_width (int): N, odd and below every K. Defaults to 5.
        small_kernel (int | bool, optional): Side of the parallel small convolution; None leaves it out. Defaults to
            True, the stripe width. (False means None, as configs of 0.1.0 have booleans.)
        width_factor (float, optional): Every width is ``int(channels * width_factor)``, in place of the arch's: 1, if
            its name ends in ``-w1``, else 1.3.
        depths (Sequence[int], optional): Number of blocks of each stage in place of the arch's.
        channels (Sequence[int], optional): Base width of each stage in place of the arch's.

    Raises:
        ValueError: If the arch is unknown, a kernel, the stripe width or the small kernel is even, or a kernel is not
            above the stripe width.

    Examples:
        >>> import torch
        >>> from pelk_mm.nets import SLaK
        >>> model = SLaK('tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
        [(1, 124, 16, 16), (1, 249, 8, 8), (1, 499, 4, 4), (1, 998, 2, 2)]
    """

    arch_settings = {
        size + ending: dict(**dims, kernel_sizes=(51, 49, 47, 13), width_factor=factor)
        for size, dims in SIZES.items() for ending, factor in WIDTH_FACTORS.items()
    }

    def __init__(self,
                 arch: str | dict = 'tiny',
                 kernel_sizes: Sequence[int] | None = None,
                 stripe_width: int = 5,
                 small_kernel: int | bool | None = True,
                 width_factor: float | None = None,
                 *,
                 depths: Sequence[int] | None = None,
                 channels: Sequence[int] | None = None,
                 in_channels: int = 3,
                 ffn_ratio: float = 4.0,
                 norm_layer: Callable[[int], nn.Module] = LayerNorm2d,
                 branch_norm_layer: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
                 act_layer: Callable[[], nn.Module] = nn.GELU,
                 drop_path_rate: float = 0.0,
                 layer_scale_init_value: float = 1e-6,
                 use_grn: bool = False,
                 stem_patch_size: int = 4,
                 out_indices: int | Sequence[int] = -1,
                 frozen_stages: int = 0,
                 gap_before_final_norm: bool = True,
                 with_cp: bool = False,
                 deploy: bool = False) -> None:
        settings = resolve_arch(
            self.arch_settings, arch, optional=dict(width_factor=WIDTH_FACTORS['']), depths=depths, channels=channels,
            kernel_sizes=kernel_sizes, width_factor=width_factor)
        sizes = positive_ints('kernel_sizes', settings['kernel_sizes'])
        check_odd('stripe_width', stripe_width)
        if isinstance(small_kernel, bool):
            small_kernel = stripe_width if small_kernel else None
        check_odd('small_kernel', small_kernel, optional=True)
        if any(size % 2 == 0 or size <= stripe_width for size in sizes):
            raise ValueError(f'kernel_sizes must be odd and above stripe_width ({stripe_width}), got {sizes}')
        self.kernel_sizes = sizes
        self.stripe_width = stripe_width
        self.small_kernel = small_kernel
        super().__init__(
            settings['depths'], settings['channels'], settings['width_factor'], in_channels=in_channels,
            ffn_ratio=ffn_ratio, norm_layer=norm_layer, branch_norm_layer=branch_norm_layer, act_layer=act_layer,
            drop_path_rate=drop_path_rate, layer_scale_init_value=layer_scale_init_value, use_grn=use_grn,
            out_indices=out_indices, frozen_stages=frozen_stages, gap_before_final_norm=gap_before_final_norm,
            with_cp=with_cp, deploy=deploy, stem_patch_size=stem_patch_size)

    def build_mixer(self, stage: int, channels: int) -> nn.Module:
        kernel, stripe, bias = self.kernel_sizes[stage], self.stripe_width, self.branch_norm_layer is None
        shapes = dict(vertical=(kernel, stripe), horizontal=(stripe, kernel))
        if self.small_kernel is not None:
            shapes['small'] = (self.small_kernel, self.small_kernel)
        convs: dict[str, nn.Module] = {}
        for name, (height, width) in shapes.items():
            padding = (height // 2, width // 2)
            convs[name] = Conv2d(channels, channels, (height, width), padding=padding, groups=channels, bias=bias)
        return ReparamDepthwiseConv(convs, channels, self.branch_norm_layer)
