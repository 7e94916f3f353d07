"""PeLK: parameter-efficient large kernel ConvNets with peripheral convolution (CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from ..layers import (
    Conv2d,
    KernelPositionEmbedding,
    LayerNorm2d,
    PartialMixer,
    PeripheralConv2d,
    ReparamDepthwiseConv,
)
from ..ops import SharingGrid
from .arguments import SIZES, WIDTH_FACTORS, check_number, check_odd, one_per_stage, resolve_arch
from .large_kernel_net import LargeKernelNet

_KERNELS = {
    '': dict(kernel_sizes=(51, 49, 47, 13), center=5),
    '-101': dict(kernel_sizes=(101, 69, 67, 13), center=7),
    '-151': dict(kernel_sizes=(151, 89, 87, 13), center=7),
}
# Settings that an arch as a dict may leave out.
_OPTIONAL = dict(center=5, width_factor=WIDTH_FACTORS[''])


class PeLK(LargeKernelNet):
    """PeLK backbone for classification, segmentation and detection.

    A PyTorch implementation of `PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution
    <https://arxiv.org/abs/2403.07589>`_. The first ``int(conv_ratio * C)`` channels of a block go through a peripheral
    convolution and a parallel small one, each with its norm; the positional embedding's constant is added after them.

    The arguments from ``in_channels`` on are those of :class:`LargeKernelNet`.

    Args:
        arch (str | dict): A name of ``PeLK.arch_settings``, or a dict with ``depths``, ``channels``, ``kernel_sizes``
            and optionally ``center`` and ``width_factor``. The names are ``tiny``, ``small``, ``base``, ... with
            kernels of 51; each also with ``-101`` and ``-151``, larger kernels; and all of these also with ``-w1``,
            the widths of ConvNeXt instead of 1.3 times these, for networks without zeros.
        kernel_sizes (Sequence[int | Sequence[int]], optional): K of each stage in place of the arch's; an entry may be
            an explicit half grid, outermost width first, centre last.
        center (int, optional): Side of the fine-grained centre in place of the arch's.
        base (int): Growth of the cells outside the centre. Defaults to 2.
        grids (str | Sequence[Sequence[int] | None], optional): Explicit half grid of each stage, which must cover the
            stage's kernel size; None keeps the rule of ``center`` and ``base``. ``'dense'`` shares nothing: plain K x K
            kernels, "RepLK-51" of Table 1 with ``conv_ratio=1`` and ``position_embedding=False``.
        conv_ratio (float): Share of the channels that are convolved. Defaults to 3/8.
        width_factor (float, optional): Every width is ``int(channels * width_factor)``, in place of the arch's: 1, if
            its name ends in ``-w1``, else 1.3.
        small_kernel (int, optional): Side of the parallel small convolution; None leaves it out. Defaults to 5.
        position_embedding (bool): Whether to use the kernel-wise positional embedding. Defaults to True.
        depths (Sequence[int], optional): Number of blocks of each stage in place of the arch's.
        channels (Sequence[int], optional): Base width of each stage in place of the arch's.

    Raises:
        ValueError: If the arch is unknown, a kernel is even, a grid does not sum to its kernel, the centre exceeds a
            kernel, or an index is out of range.

    Examples:
        >>> import torch
        >>> from pelk_mm.nets import PeLK
        >>> model = PeLK('tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
        [(1, 124, 16, 16), (1, 249, 8, 8), (1, 499, 4, 4), (1, 998, 2, 2)]
    """

    arch_settings = {
        size + suffix + ending: {**dims, **kernels, 'width_factor': factor}
        for size, dims in SIZES.items() for suffix, kernels in _KERNELS.items()
        for ending, factor in WIDTH_FACTORS.items()
    }

    def __init__(self,
                 arch: str | dict = 'tiny',
                 kernel_sizes: Sequence[int | Sequence[int]] | None = None,
                 center: int | None = None,
                 base: int = 2,
                 grids: str | Sequence[Sequence[int] | None] | None = None,
                 conv_ratio: float = 3 / 8,
                 width_factor: float | None = None,
                 small_kernel: int | None = 5,
                 position_embedding: bool = True,
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
        settings = resolve_arch(self.arch_settings, arch, optional=_OPTIONAL, depths=depths, channels=channels,
                                kernel_sizes=kernel_sizes, center=center, width_factor=width_factor)
        if isinstance(grids, str) and grids != 'dense':
            raise ValueError(f"grids must be 'dense' or one half grid or None per stage, got {grids!r}")
        num_stages = len(settings['depths'])
        stage_grids = [None] * num_stages if grids is None or isinstance(grids, str) else one_per_stage(
            'grids', grids, num_stages)
        check_number('conv_ratio', conv_ratio, 'in (0, 1]', lambda ratio: 0 < ratio <= 1)
        check_odd('small_kernel', small_kernel, optional=True)
        self.grids: list[SharingGrid] = []
        for stage, (size, grid) in enumerate(zip(settings['kernel_sizes'], stage_grids)):
            try:
                # dense() itself refuses an explicit grid instead of a size.
                self.grids.append(SharingGrid.dense(cast(int, size)) if grids == 'dense' else
                                  SharingGrid.create(size, grid, settings['center'], base))
            except (TypeError, ValueError) as error:
                raise type(error)(f'kernel_sizes, grids, center and base make no grid for stage {stage}: '
                                  f'{error}') from error
        self.conv_ratio = conv_ratio
        self.small_kernel = small_kernel
        self.use_position_embedding = position_embedding
        super().__init__(
            settings['depths'], settings['channels'], settings['width_factor'], in_channels=in_channels,
            ffn_ratio=ffn_ratio, norm_layer=norm_layer, branch_norm_layer=branch_norm_layer, act_layer=act_layer,
            drop_path_rate=drop_path_rate, layer_scale_init_value=layer_scale_init_value, use_grn=use_grn,
            out_indices=out_indices, frozen_stages=frozen_stages, gap_before_final_norm=gap_before_final_norm,
            with_cp=with_cp, deploy=deploy, stem_patch_size=stem_patch_size)

    def conv_channels(self, channels: int) -> int:
        """Return the number of convolved channels of a block with ``channels``."""
        return max(1, int(channels * self.conv_ratio))

    def build_mixer(self, stage: int, channels: int) -> nn.Module:
        width, bias = self.conv_channels(channels), self.branch_norm_layer is None
        convs: dict[str, nn.Module] = dict(large=PeripheralConv2d(width, self.grids[stage], bias=bias))
        if self.small_kernel is not None:
            convs['small'] = Conv2d(
                width, width, self.small_kernel, padding=self.small_kernel // 2, groups=width, bias=bias)
        return PartialMixer(ReparamDepthwiseConv(convs, width, self.branch_norm_layer), width)

    def build_position_embedding(self, stage: int, channels: int) -> nn.Module | None:
        if not self.use_position_embedding:
            return None
        return KernelPositionEmbedding(self.conv_channels(channels), self.grids[stage])
