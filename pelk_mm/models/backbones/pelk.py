"""PeLK: parameter-efficient large kernel ConvNets with peripheral convolution (CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

from torch import nn

from pelk_mm.layers import Conv2d, DepthwiseBranches, KernelPositionEmbedding, PartialMixer, PeripheralConv2d
from pelk_mm.ops import SharingGrid
from pelk_mm.registry import MODELS

from .large_kernel_net import SIZES, LargeKernelNet, check_number, positive_ints

_KERNELS = {
    '': dict(kernel_sizes=(51, 49, 47, 13), center=5),
    '-101': dict(kernel_sizes=(101, 69, 67, 13), center=7),
    '-151': dict(kernel_sizes=(151, 89, 87, 13), center=7),
}


@MODELS.register_module()
class PeLK(LargeKernelNet):
    """PeLK backbone for classification, segmentation and detection alike.

    A PyTorch implementation of `PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution
    <https://arxiv.org/abs/2403.07589>`_. The first ``int(conv_ratio * C)`` channels of a block go through a peripheral
    convolution and a parallel small one, each with its norm; the positional embedding's constant is added after them.

    Args:
        arch (str | dict): A name of ``PeLK.arch_settings`` (``tiny``, ``small``, ``base``, each also ``-101`` and
            ``-151``, ...) or a dict with ``depths``, ``channels``, ``kernel_sizes`` and optionally ``center``.
        kernel_sizes (Sequence[int | Sequence[int]], optional): K of each stage in place of the arch's; an entry may be
            an explicit half grid, outermost width first, centre last.
        center (int, optional): Side of the fine-grained centre in place of the arch's.
        base (int): Growth of the cells outside the centre. Defaults to 2.
        grids (str | Sequence[Sequence[int] | None], optional): Explicit half grid of each stage, which must cover the
            stage's kernel size; None keeps the rule of ``center`` and ``base``. ``'dense'`` shares nothing: plain K x K
            kernels, "RepLK-51" of Table 1 with ``conv_ratio=1`` and ``position_embedding=False``.
        conv_ratio (float): Share of the channels that are convolved. Defaults to 3/8.
        width_factor (float): Every width is ``int(channels * width_factor)``. Defaults to 1.3.
        small_kernel (int, optional): Side of the parallel small convolution; None leaves it out. Defaults to 5.
        position_embedding (bool): Whether to use the kernel-wise positional embedding. Defaults to True.
        branch_norm_cfg (dict, optional): Norm after each convolution. Defaults to BatchNorm; None for a bias instead.
        **kwargs: ``depths``, ``channels`` (in place of the arch's), ``in_channels``, ``ffn_ratio``, ``norm_cfg``,
            ``act_cfg``, ``drop_path_rate``, ``layer_scale_init_value``, ``out_indices``, ``frozen_stages``,
            ``gap_before_final_norm``, ``with_cp``, ``deploy`` and ``init_cfg``: see :class:`LargeKernelNet`.

    Raises:
        ValueError: If the arch is unknown, a kernel is even, a grid does not sum to its kernel, the centre exceeds a
            kernel, or an index is out of range.
        TypeError: If an argument is unknown.

    Examples:
        >>> import torch
        >>> from pelk_mm.models import PeLK
        >>> model = PeLK('tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
        [(1, 124, 16, 16), (1, 249, 8, 8), (1, 499, 4, 4), (1, 998, 2, 2)]
    """

    arch_settings = {
        size + suffix: {**dims, **kernels}
        for size, dims in SIZES.items() for suffix, kernels in _KERNELS.items()
    }

    def __init__(self,
                 arch: str | dict = 'tiny',
                 kernel_sizes: Sequence[int | Sequence[int]] | None = None,
                 center: int | None = None,
                 base: int = 2,
                 grids: str | Sequence[Sequence[int] | None] | None = None,
                 conv_ratio: float = 3 / 8,
                 width_factor: float = 1.3,
                 small_kernel: int | None = 5,
                 position_embedding: bool = True,
                 branch_norm_cfg: Mapping | None = MappingProxyType(dict(type='BN')),
                 **kwargs) -> None:
        settings = self._arch(arch, optional=('center', ))
        depths = positive_ints('depths', kwargs.pop('depths', settings['depths']))
        channels = kwargs.pop('channels', settings['channels'])
        kernel_sizes = settings['kernel_sizes'] if kernel_sizes is None else kernel_sizes
        center = settings.get('center', 5) if center is None else center
        if isinstance(grids, str) and grids != 'dense':
            raise ValueError(f"grids must be 'dense' or one half grid or None per stage, got {grids!r}")
        stage_grids = [None] * len(depths) if grids is None or isinstance(grids, str) else grids
        for name, values in (('kernel_sizes', kernel_sizes), ('grids', stage_grids)):
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ValueError(f'{name} must be a sequence of one entry per stage, got {values!r}')
            if len(values) != len(depths):
                raise ValueError(f'{name} must have one entry per stage ({len(depths)}, as depths has), got '
                                 f'{len(values)}: {values}')
        check_number('conv_ratio', conv_ratio, 'in (0, 1]', lambda ratio: 0 < ratio <= 1)
        if small_kernel is not None:
            check_number('small_kernel', small_kernel, 'None or a positive odd number',
                         lambda size: size > 0 and size % 2 == 1, kinds=int)
        self.grids: list[SharingGrid] = []
        for stage, (size, grid) in enumerate(zip(kernel_sizes, stage_grids)):
            try:
                # dense() itself refuses an explicit grid in the place of a size.
                self.grids.append(SharingGrid.dense(cast(int, size)) if grids == 'dense' else
                                  SharingGrid.create(size, grid, center, base))
            except (TypeError, ValueError) as error:
                raise type(error)(f'kernel_sizes, grids, center and base make no grid for stage {stage}: '
                                  f'{error}') from error
        self.conv_ratio = conv_ratio
        self.small_kernel = small_kernel
        self.use_position_embedding = position_embedding
        super().__init__(depths, channels, width_factor=width_factor, branch_norm_cfg=branch_norm_cfg, **kwargs)

    def conv_channels(self, channels: int) -> int:
        """Number of convolved channels of a block with ``channels``."""
        return max(1, int(channels * self.conv_ratio))

    def build_mixer(self, stage: int, channels: int) -> nn.Module:
        width, bias = self.conv_channels(channels), self.branch_norm_cfg is None
        convs: dict[str, nn.Module] = dict(large=PeripheralConv2d(width, self.grids[stage], bias=bias))
        if self.small_kernel is not None:
            convs['small'] = Conv2d(
                width, width, self.small_kernel, padding=self.small_kernel // 2, groups=width, bias=bias)
        branches = DepthwiseBranches(convs, width, None if bias else self.build_branch_norm)
        return PartialMixer(branches, width)

    def build_position_embedding(self, stage: int, channels: int) -> nn.Module | None:
        if not self.use_position_embedding:
            return None
        return KernelPositionEmbedding(self.conv_channels(channels), self.grids[stage])
