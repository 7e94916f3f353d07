"""Networks of :mod:`pelk_mm.nets` as models of timm, and the checkpoints that they load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import NormMlpClassifierHead, get_act_layer, get_norm_layer
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .. import nets
from ..nets.blocks import LargeKernelBlock

# The convolution of the stem, by its name in every network here.
FIRST_CONV = 'downsample_layers.0.0'


class TimmNet(nets.LargeKernelNet):
    """The methods and attributes that timm expects of a model, around a network of :mod:`pelk_mm.nets`.

    The stages are the network's, with its names in the state dict. In the place of the last output's norm there is
    timm's head, pooling, norm, dropout and classifier; features are those of the stages, before any norm, as of timm's
    ConvNeXt. A class that inherits from this one and then from the network takes the arguments of the network, except
    ``in_channels``, ``out_indices`` and ``gap_before_final_norm``, and:

    Args:
        num_classes (int): Classes of the head; 0 leaves the classifier out.
        in_chans (int): Channels of the image.
        global_pool (str): timm's name of the pooling: ``'avg'``, ``'max'``, ... or ``''`` for no pooling.
        output_stride (int): 32; there is no dilated form.
        drop_rate (float): Dropout before the classifier.
        device (torch.device | str, optional): Where the parameters are made.
        dtype (torch.dtype, optional): Of the parameters.

    Raises:
        ValueError: If ``output_stride`` is not 32, or the network refuses an argument.
    """

    def __init__(self,
                 num_classes: int = 1000,
                 in_chans: int = 3,
                 global_pool: str = 'avg',
                 output_stride: int = 32,
                 drop_rate: float = 0.0,
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None,
                 **kwargs: Any) -> None:
        if output_stride != 32:
            raise ValueError(f'output_stride must be 32, as there is no dilated form, got {output_stride}')
        for name, by_name in (('act_layer', get_act_layer), ('norm_layer', get_norm_layer)):
            if isinstance(kwargs.get(name), str):
                kwargs[name] = by_name(kwargs[name])
        with nullcontext() if device is None else torch.device(device):
            super().__init__(in_channels=in_chans, out_indices=-1, **kwargs)
            self.num_features = self.channels[-1]
            self.head = NormMlpClassifierHead(self.num_features, num_classes, pool_type=global_pool,
                                              drop_rate=drop_rate)
        self.head.norm = self._modules.pop(f'norm{self.num_stages - 1}')
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.head_hidden_size = self.num_features
        self.feature_info = [dict(num_chs=width, reduction=self.stem_patch_size * 2**stage, module=f'stages.{stage}')
                             for stage, width in enumerate(self.channels)]
        self.to(dtype=dtype)

    def forward_intermediates(self,
                              x: Tensor,
                              indices: int | list[int] | None = None,
                              norm: bool = False,
                              stop_early: bool = False,
                              output_fmt: str = 'NCHW',
                              intermediates_only: bool = False) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the outputs of stages.

        Args:
            x (Tensor): (N, in_chans, H, W).
            indices (int | list[int], optional): The last so many stages, or these. Defaults to all.
            norm (bool): Without effect: the norm follows the pooling, in the head.
            stop_early (bool): Leave out the stages after the last of ``indices``.
            output_fmt (str): ``'NCHW'``.
            intermediates_only (bool): Return the outputs only.

        Returns:
            tuple[Tensor, list[Tensor]]: The last stage's output, and those of ``indices``: (N, C_i, H / 2**(i + 2),
            W / 2**(i + 2)), rounded down.

        Raises:
            ValueError: If ``output_fmt`` is another one.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.stages), indices)
        end = last + 1 if stop_early else len(self.stages)
        intermediates = []
        for index, (downsample, stage) in enumerate(zip(self.downsample_layers[:end], self.stages)):
            x = stage(downsample(x))
            if index in taken:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(self,
                                  indices: int | list[int] = 1,
                                  prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Remove the stages after the last of ``indices``, and the head; return the indices, counted from 0."""
        taken, last = feature_take_indices(len(self.stages), indices)
        prune_head = prune_head or last < len(self.stages) - 1
        self.downsample_layers, self.stages = self.downsample_layers[:last + 1], self.stages[:last + 1]
        self.num_features = self.head.in_features = self.feature_info[last]['num_chs']
        if prune_head:
            self.reset_classifier(0, '', reset_other=True)
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / 32, W / 32) with patches of 4, rounded down."""
        return self.forward_intermediates(x, indices=1)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, norm and classify what :meth:`forward_features` returns; ``pre_logits`` leaves out the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the classifier, an ``nn.Linear``."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Put in a new classifier, and pooling; ``reset_other`` also removes the head's norm."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, reset_other=reset_other)
        self.head_hidden_size = self.head.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass, or none."""
        for module in self.modules():
            if isinstance(module, LargeKernelBlock):
                module.with_cp = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of the positional embeddings; timm itself leaves out vectors, biases and norms."""
        return {name for name, _ in self.named_parameters() if 'position_embedding' in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the groups of timm's layer decay: those of :meth:`get_layer_depth`, or the stages if ``coarse``."""
        if coarse:
            return dict(stem=r'^downsample_layers\.0', blocks=r'^(?:downsample_layers|stages)\.(\d+)')
        part = re.compile(r'downsample_layers\.\d+|stages\.\d+\.(blocks\.\d+|position_embedding)')
        names = [name for name, _ in self.named_modules() if part.fullmatch(name)]
        return dict(layers=[(rf'^{re.escape(name)}\b', self.get_layer_depth(f'{name}.')[:1]) for name in names])


class PeLK(TimmNet, nets.PeLK):
    """:class:`pelk_mm.nets.PeLK` with timm's head and methods; see :class:`TimmNet`."""


class SLaK(TimmNet, nets.SLaK):
    """:class:`pelk_mm.nets.SLaK` with timm's head and methods; see :class:`TimmNet`."""


def net_state_dict(model: TimmNet) -> dict[str, Tensor]:
    """Return the state dict of a model of this module as the network of :mod:`pelk_mm.nets` takes it, without the head.

    Examples:
        >>> import timm
        >>> import pelk_mm.timm
        >>> from pelk_mm.nets import PeLK
        >>> model = timm.create_model('pelk_atto')
        >>> PeLK('atto').load_state_dict(pelk_mm.timm.net_state_dict(model))
        <All keys matched successfully>
    """
    norm = f'norm{model.num_stages - 1}.'
    return {re.sub(r'^head\.norm\.', norm, name): value for name, value in model.state_dict().items()
            if not name.startswith('head.fc.')}


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: TimmNet) -> dict[str, Tensor]:
    """Rename a checkpoint for a model of this module.

    Args:
        state_dict (Mapping[str, Tensor]): Of a model of this module, of a network of :mod:`pelk_mm.nets`, or of a
            classifier, segmentor or detector around one in OpenMMLab; or of any ConvNeXt that
            :func:`pelk_mm.nets.grow_convnext` takes, which is grown.
        model (TimmNet): The model that loads it.

    Returns:
        dict[str, Tensor]: With the model's names.

    Raises:
        ValueError: If it is of none of these, or a ConvNeXt's weight does not fit.
    """
    if not any('.mixer.' in name for name in state_dict):
        weights = nets.convnext_state_dict(state_dict)
        if not isinstance(model, nets.PeLK):
            raise ValueError(f'the checkpoint must be of {type(model).__name__}, got other names such as '
                             f'{next(iter(state_dict), None)!r}; a ConvNeXt grows into a PeLK only')
        # timm itself adapts the stem to other channels of the image.
        backbone = dict(weights.backbone)
        stem = {f'{FIRST_CONV}.weight': backbone.pop(f'{FIRST_CONV}.weight')}
        head = {name: value for name, value in weights.head.items() if name.startswith('head.')}
        state_dict = {**nets.grown_state_dict(model, backbone)[0], **stem, **head}
    elif any(name.startswith('backbone.') for name in state_dict):
        state_dict = {name.removeprefix('backbone.'): value for name, value in state_dict.items()
                      if name.startswith(('backbone.', 'head.fc.'))}
    return {re.sub(rf'^norm{model.num_stages - 1}\.', 'head.norm.', name): value for name, value in state_dict.items()}
