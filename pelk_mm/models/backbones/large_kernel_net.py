"""The skeleton of every large-kernel backbone here: ConvNeXt's stages and blocks around a token mixer.

Block, stage, network, read from the top. What a backbone mixes tokens with is said by its subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from math import ceil, inf
from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from pelk_mm.layers import Conv2d, DepthwiseBranches, LayerNorm2d, in_recomputation, statistics_kept
from pelk_mm.module_names import clean_name
from pelk_mm.registry import MODELS

MODELS.register_module('LN2d', module=LayerNorm2d)

SIZES = dict(
    tiny=dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
    small=dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
    base=dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    # Not of any paper: for tests and small data.
    atto=dict(depths=(1, 1, 2, 1), channels=(24, 48, 96, 192)),
    pico=dict(depths=(2, 2, 6, 2), channels=(48, 96, 192, 384)))


class LargeKernelBlock(BaseModule):
    """Token mixer -> norm -> 1x1 (x ffn_ratio) -> act -> 1x1 -> layer scale -> drop path -> + input.

    Args:
        channels (int): C.
        mixer (nn.Module): Maps (N, C, H, W) to the same shape; may take the stage's embedding as second argument.
        ffn_ratio (float): Expansion of the pointwise layers.
        norm_cfg (dict): The norm between mixer and pointwise layers.
        act_cfg (dict): The activation between the pointwise layers.
        drop_path_rate (float): Probability of dropping the residual branch of a sample.
        layer_scale_init_value (float): Initial layer scale; 0 leaves it out.
        with_cp (bool): Recompute the block in the backward pass to save memory.
    """

    def __init__(self, channels: int, mixer: nn.Module, ffn_ratio: float, norm_cfg: dict, act_cfg: dict,
                 drop_path_rate: float, layer_scale_init_value: float, with_cp: bool) -> None:
        super().__init__()
        hidden = int(channels * ffn_ratio)
        self.mixer = mixer
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.pointwise_conv1 = nn.Linear(channels, hidden)
        self.act = build_activation_layer(act_cfg)
        self.pointwise_conv2 = nn.Linear(hidden, channels)
        self.gamma = nn.Parameter(
            torch.full((channels, ), float(layer_scale_init_value))) if layer_scale_init_value > 0 else None
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.with_cp = with_cp

    def forward(self, x: Tensor, *mixer_args: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, *mixer_args, use_reentrant=False)
        return self._forward(x, *mixer_args)

    def _forward(self, x: Tensor, *mixer_args: Tensor) -> Tensor:
        if in_recomputation():
            with statistics_kept(self):
                return self._add_residual(x, *mixer_args)
        return self._add_residual(x, *mixer_args)

    def _add_residual(self, x: Tensor, *mixer_args: Tensor) -> Tensor:
        out = self.norm(self.mixer(x, *mixer_args))
        out = self.pointwise_conv2(self.act(self.pointwise_conv1(out.permute(0, 2, 3, 1))))
        if self.gamma is not None:
            out = out * self.gamma
        return x + self.drop_path(out.permute(0, 3, 1, 2))


class LargeKernelStage(BaseModule):
    """Blocks of one resolution and the positional embedding that they share.

    Args:
        blocks (Sequence[LargeKernelBlock]): The blocks, first to last.
        position_embedding (nn.Module, optional): Called once per forward; its result goes to every mixer.
    """

    def __init__(self, blocks: Sequence[LargeKernelBlock], position_embedding: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.position_embedding = position_embedding

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        args = self._mixer_args()
        for block in self.blocks:
            x = block(x, *args)
        return x

    def switch_to_deploy(self) -> None:
        """Merge every mixer that can be merged, and the embedding into their biases."""
        args = self._mixer_args()
        for module in list(self.blocks.modules()):
            if hasattr(module, 'switch_to_deploy'):
                module.switch_to_deploy(*args)
        self.position_embedding = None

    def _mixer_args(self) -> tuple[Tensor, ...]:
        return () if self.position_embedding is None else (self.position_embedding(), )


class LargeKernelNet(BaseModule):
    """Four stages of large-kernel blocks: 4x4 stem, LN + 2x2 stride-2 convolutions between the stages.

    Sides of the input that are no multiple of 32 are fine: what does not fill a patch is cut off, as everywhere in
    ConvNeXt's family. Subclasses say in :meth:`build_mixer` and :meth:`build_position_embedding` how tokens are mixed.

    Args:
        depths (Sequence[int]): Number of blocks of each stage.
        channels (Sequence[int]): Base width of each stage.
        width_factor (float): Every width is ``int(channels * width_factor)``, SLaK's 1.3 with 40 % sparsity.
        in_channels (int): Channels of the image.
        ffn_ratio (float): Expansion of the pointwise layers.
        norm_cfg (dict): Norm of stem, downsampling, blocks and outputs.
        branch_norm_cfg (dict, optional): Norm after each convolution of a mixer; it is merged for deployment if it is a
            BatchNorm. None gives the convolutions a bias instead.
        act_cfg (dict): Activation of the blocks.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
        layer_scale_init_value (float): Initial layer scale, 0 leaves it out.
        out_indices (int | Sequence[int]): Stages to return; negative ones count from the last. Stages after the last
            one that is returned are not built; checkpoints that have them load all the same.
        frozen_stages (int): The stem and this many stages are not trained, and stay in eval mode. 0 freezes nothing.
        gap_before_final_norm (bool): Average each output over its pixels before its norm and return (N, C), for
            classification; False returns (N, C, H, W), for dense prediction.
        with_cp (bool): Gradient checkpointing of every block.
        deploy (bool): Build the form that :meth:`switch_to_deploy` makes, for its checkpoints; it is not for training.
        init_cfg (dict | list[dict], optional): MMEngine's initialisation; ``dict(type='Pretrained', ...)`` loads.
    """

    # What the names of ``arch`` stand for; filled by the subclasses, with the same keys for each name.
    arch_settings: Mapping[str, dict] = {}

    def __init__(self,
                 depths: Sequence[int],
                 channels: Sequence[int],
                 width_factor: float = 1.0,
                 in_channels: int = 3,
                 ffn_ratio: float = 4.0,
                 norm_cfg: dict | None = None,
                 branch_norm_cfg: Mapping | None = None,
                 act_cfg: dict | None = None,
                 drop_path_rate: float = 0.0,
                 layer_scale_init_value: float = 1e-6,
                 out_indices: int | Sequence[int] = -1,
                 frozen_stages: int = 0,
                 gap_before_final_norm: bool = True,
                 with_cp: bool = False,
                 deploy: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.depths = positive_ints('depths', depths)
        self.num_stages = len(self.depths)
        base_channels = positive_ints('channels', channels, length=self.num_stages)
        check_number('width_factor', width_factor, 'positive', lambda factor: 0 < factor < inf)
        self.channels = tuple(int(width * width_factor) for width in base_channels)
        if not all(self.channels):
            raise ValueError(f'width_factor must leave every stage a channel, got {width_factor} for {base_channels}')
        check_number('in_channels', in_channels, 'a positive int', lambda number: number > 0, kinds=int)
        check_number('ffn_ratio', ffn_ratio, f'positive and give {min(self.channels)} channels a hidden one',
                     lambda ratio: 0 < ratio < inf and min(self.channels) * ratio >= 1)
        check_number('drop_path_rate', drop_path_rate, 'in [0, 1)', lambda rate: 0 <= rate < 1)
        check_number('layer_scale_init_value', layer_scale_init_value, 'at least 0', lambda value: 0 <= value < inf)
        self.out_indices = _stage_indices(out_indices, self.num_stages)
        check_number('frozen_stages', frozen_stages, f'in 0 ... {self.num_stages}',
                     lambda number: 0 <= number <= self.num_stages, kinds=int)
        self.frozen_stages = frozen_stages
        self.gap_before_final_norm = gap_before_final_norm
        # A plain dict of our own: a read-only default could not be deep-copied, which EMA does.
        self.branch_norm_cfg = None if branch_norm_cfg is None else dict(branch_norm_cfg)
        norm_cfg = norm_cfg or dict(type='pelk_mm.LN2d', eps=1e-6)
        act_cfg = act_cfg or dict(type='GELU')

        def norm(width: int) -> nn.Module:
            return build_norm_layer(norm_cfg, width)[1]

        blocks_in_all = sum(self.depths)
        drop_path_rates = (drop_path_rate * i / max(blocks_in_all - 1, 1) for i in range(blocks_in_all))
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        # Stages after the last one that is returned are not built.
        built = self.out_indices[-1] + 1
        for stage, (depth, width) in enumerate(zip(self.depths[:built], self.channels)):
            if stage == 0:
                downsample = nn.Sequential(Conv2d(in_channels, width, kernel_size=4, stride=4), norm(width))
            else:
                previous = self.channels[stage - 1]
                downsample = nn.Sequential(norm(previous), Conv2d(previous, width, kernel_size=2, stride=2))
            self.downsample_layers.append(downsample)
            blocks = [
                LargeKernelBlock(width, self.build_mixer(stage, width), ffn_ratio, norm_cfg, act_cfg,
                                 next(drop_path_rates), layer_scale_init_value, with_cp) for _ in range(depth)
            ]
            self.stages.append(LargeKernelStage(blocks, self.build_position_embedding(stage, width)))
            if stage in self.out_indices:
                self.add_module(f'norm{stage}', norm(width))
        self._init_own_weights()
        self._freeze_stages()
        if deploy:
            self.switch_to_deploy()

    @classmethod
    def _arch(cls, arch: str | dict, optional: Sequence[str] = ()) -> dict:
        """Look up a name of ``arch_settings``, or check a dict, whose ``optional`` keys may be missing."""
        if isinstance(arch, str):
            if arch not in cls.arch_settings:
                near = get_close_matches(arch, cls.arch_settings, n=1)
                hint = f'; did you mean {near[0]!r}?' if near else ''
                raise ValueError(f'arch must be a dict or one of {sorted(cls.arch_settings)}, got {arch!r}{hint}')
            return cls.arch_settings[arch]
        known = set(next(iter(cls.arch_settings.values())))
        required = known - set(optional)
        if not isinstance(arch, dict) or not required <= set(arch) <= known:
            also = f' and may have {sorted(optional)}' if optional else ''
            raise ValueError(f'arch as a dict must have the keys {sorted(required)}{also}, got {arch!r}')
        return arch

    def build_mixer(self, stage: int, channels: int) -> nn.Module:
        """Make the token mixer of one block of ``stage``."""
        raise TypeError(f'{type(self).__name__} must define build_mixer: LargeKernelNet is a skeleton')

    def build_position_embedding(self, stage: int, channels: int) -> nn.Module | None:
        """Make the embedding that the mixers of ``stage`` share, or None."""
        return None

    def build_branch_norm(self, channels: int) -> nn.Module:
        """Make the norm after one convolution of a mixer."""
        return build_norm_layer(self.branch_norm_cfg, channels)[1]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): (N, in_channels, H, W), H and W at least 4 * 2**(stages - 1).

        Returns:
            tuple[Tensor, ...]: One per out index: (N, C_i, H / 2**(i + 2), W / 2**(i + 2)), rounded down; (N, C_i) with
            ``gap_before_final_norm``.
        """
        if in_recomputation():
            with statistics_kept(self):
                return self._forward(x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = []
        for index, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(downsample(x))
            if index in self.out_indices:
                norm = getattr(self, f'norm{index}')
                if self.gap_before_final_norm:
                    outs.append(norm(x.mean((-2, -1), keepdim=True)).flatten(1))
                else:
                    outs.append(norm(x).contiguous())
        return tuple(outs)

    def switch_to_deploy(self) -> None:
        """Merge all branches, their norms and the positional embedding, in place; in eval mode, after loading.

        Raises:
            TypeError, ValueError: If a norm cannot be folded into its convolution; nothing is changed then.
        """
        for name, module in self.named_modules():
            if isinstance(module, DepthwiseBranches):
                module.check_norms(f'{clean_name(name)}.')
        for stage in self.stages:
            stage.switch_to_deploy()

    def is_of_unbuilt_stage(self, name: str) -> bool:
        """Whether a state dict's name is of a stage or an output norm that ``out_indices`` leaves out."""
        part, _, rest = name.partition('.')
        if part in ('stages', 'downsample_layers'):
            return rest.partition('.')[0] in map(str, range(len(self.stages), self.num_stages))
        return part in {f'norm{stage}' for stage in set(range(self.num_stages)) - set(self.out_indices)}

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Also load what has more stages, and what was saved inside other wrappers."""
        names = chain(self.named_parameters(), self.named_buffers())
        # Of these two, hooks of their own take care when a state dict is saved and loaded.
        own = {clean_name(name): clean_name(name, ('_checkpoint_wrapped_module', '_fsdp_wrapped_module'))
               for name, _ in names}
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = clean_name(key[len(prefix):])
            if self.is_of_unbuilt_stage(name):
                del state_dict[key]
            elif name in own and own[name] != key[len(prefix):]:
                state_dict[prefix + own[name]] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_sparse_parameters(self) -> dict[str, nn.Parameter]:
        """The weights that sparse training masks, by name: those of 2 or 4 dimensions, as SLaK does.

        Stem, downsampling, depthwise (theta for a peripheral convolution, so the sharing is kept) and pointwise
        layers; no bias, norm, layer scale or positional embedding.
        """
        return {name: parameter for name, parameter in self.named_parameters() if parameter.ndim in (2, 4)}

    def train(self, mode: bool = True) -> LargeKernelNet:
        """Set the mode; frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '', stage_wise: bool = False) -> tuple[int, int]:
        """Depth of a parameter for learning-rate decay, as ConvNeXt groups it.

        Layer-wise: the stem is 0, stages 1 and 2 are one group each, stage 3 is cut into groups of three blocks, the
        last stage is the last group: 6 groups in all, 12 where the third stage has more than 9 blocks, and as many as
        it takes where that is not enough. Stage-wise: all downsampling is 0, stage i is i + 1. Output norms and what
        lies outside the backbone are not decayed.

        Args:
            param_name (str): Full name, e.g. ``'backbone.stages.0.blocks.1.gamma'``; parts that wrappers add do not
                matter.
            prefix (str): What precedes the backbone's own names, e.g. ``'backbone.'``.
            stage_wise (bool): Which of the two groupings.

        Returns:
            tuple[int, int]: The depth, and the number of depths; a scale is ``rate ** (number - depth - 1)``.
        """
        cut = self.depths[-2] if self.num_stages > 1 else 0
        last = max(12 if cut > 9 else 6, self.num_stages - 1 + ceil(cut / 3))
        outside = (last + 1, last + 2)
        param_name, prefix = clean_name(param_name), clean_name(prefix)
        if not param_name.startswith(prefix):
            return outside
        parts = param_name[len(prefix):].split('.')
        if parts[0] not in ('downsample_layers', 'stages'):
            return outside
        stage, is_downsample = int(parts[1]), parts[0] == 'downsample_layers'
        if stage_wise:
            return (0 if is_downsample else stage + 1), last + 2
        if is_downsample and stage == 0:
            return 0, last + 2
        if stage == self.num_stages - 1:
            return last, last + 2
        if is_downsample:
            return stage + 1, last + 2
        first_block = 0 if parts[2] != 'blocks' else int(parts[3])
        return stage + 1 + (first_block // 3 if stage == self.num_stages - 2 else 0), last + 2

    def _init_own_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _freeze_stages(self) -> None:
        for downsample, stage in list(zip(self.downsample_layers, self.stages))[:self.frozen_stages]:
            for module in (downsample, stage):
                module.eval()
            for parameter in chain(downsample.parameters(), stage.parameters()):
                parameter.requires_grad = False


def check_number(name: str,
                 value: Any,
                 expected: str,
                 holds: Callable[[Any], bool],
                 kinds: type | tuple[type, ...] = (int, float)) -> None:
    """Raise unless an argument is a number of one of the ``kinds`` for which ``holds`` is true."""
    if isinstance(value, bool) or not isinstance(value, kinds) or not holds(value):
        raise ValueError(f'{name} must be {expected}, got {value!r}')


def positive_ints(name: str, values: Sequence[int], length: int | None = None) -> tuple[int, ...]:
    """The values of an argument, checked: whole numbers from 1, ``length`` of them."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(
            isinstance(value, int) and value > 0 for value in values) or not values:
        raise ValueError(f'{name} must be a sequence of positive ints, got {values!r}')
    if length is not None and len(values) != length:
        raise ValueError(f'{name} must have one entry per stage ({length}, as depths has), got {len(values)}: '
                         f'{list(values)}')
    return tuple(values)


def _stage_indices(out_indices: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    indices = [out_indices] if isinstance(out_indices, int) else out_indices
    if not isinstance(indices, Sequence) or not indices or not all(
            isinstance(index, int) and -num_stages <= index < num_stages for index in indices):
        raise ValueError(f'out_indices must be one or more of {-num_stages} ... {num_stages - 1}, got {out_indices!r}')
    return tuple(sorted({index % num_stages for index in indices}))
