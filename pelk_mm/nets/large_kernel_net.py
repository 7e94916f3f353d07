"""The skeleton of every large-kernel network here: ConvNeXt's stages around a token mixer, which subclasses choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import ceil, inf

from torch import Tensor, nn

from ..layers import Conv2d, LayerNorm2d, ReparamDepthwiseConv, count_statistics_once
from ..module_names import clean_name
from .arguments import check_factory, check_number, positive_ints, resolve_widths, stage_indices
from .blocks import LargeKernelBlock, LargeKernelStage


class LargeKernelNet(nn.Module):
    """Stages of large-kernel blocks: 4x4 stem, LN + 2x2 stride-2 convolutions between the stages.

    The sides of the input need not be multiples of 32: pixels that do not fill a patch are cut off, as in all networks
    of ConvNeXt's family. Subclasses define :meth:`build_mixer`, and may define :meth:`build_position_embedding`.

    Args:
        depths (Sequence[int]): Number of blocks of each stage.
        channels (Sequence[int]): Base width of each stage.
        width_factor (float): Every width is ``int(channels * width_factor)``, SLaK's 1.3 with 40 % sparsity.
        in_channels (int): Channels of the image.
        ffn_ratio (float): Expansion of the pointwise layers.
        norm_layer (Callable[[int], nn.Module]): Makes the norms of stem, downsampling, blocks and outputs for a number
            of channels.
        branch_norm_layer (Callable[[int], nn.Module], optional): Makes the norm after each convolution of a mixer; a
            BatchNorm is merged for deployment. None gives the convolutions a bias instead.
        act_layer (Callable[[], nn.Module]): Makes the activation of the blocks.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the first.
        layer_scale_init_value (float): Initial layer scale, 0 leaves it out.
        out_indices (int | Sequence[int]): Stages to return; negative ones count from the last. Stages after the last
            one that is returned are not built; checkpoints that have them still load.
        frozen_stages (int): The stem and this many stages are not trained, and stay in eval mode. 0 freezes nothing.
        gap_before_final_norm (bool): Average each output over its pixels before its norm and return (N, C), for
            classification; False returns (N, C, H, W), for dense prediction.
        with_cp (bool): Gradient checkpointing of every block.
        deploy (bool): Build the form that :meth:`switch_to_deploy` makes, for its checkpoints; it cannot be trained.
        use_grn (bool): Whether the pointwise layers have ConvNeXt V2's global response normalization; its authors
            then leave out the layer scale (``layer_scale_init_value=0``). Defaults to False.
        stem_patch_size (int): Side of the patches that the stem turns into pixels of the first stage, 1 to keep the
            size of the input. Defaults to 4.
    """

    # The settings of each name of ``arch``; filled by the subclasses, with the same keys for each name.
    arch_settings: Mapping[str, dict] = {}

    def __init__(self,
                 depths: Sequence[int],
                 channels: Sequence[int],
                 width_factor: float = 1.0,
                 in_channels: int = 3,
                 ffn_ratio: float = 4.0,
                 norm_layer: Callable[[int], nn.Module] = LayerNorm2d,
                 branch_norm_layer: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
                 act_layer: Callable[[], nn.Module] = nn.GELU,
                 drop_path_rate: float = 0.0,
                 layer_scale_init_value: float = 1e-6,
                 out_indices: int | Sequence[int] = -1,
                 frozen_stages: int = 0,
                 gap_before_final_norm: bool = True,
                 with_cp: bool = False,
                 deploy: bool = False,
                 use_grn: bool = False,
                 stem_patch_size: int = 4) -> None:
        super().__init__()
        self.depths = positive_ints('depths', depths)
        self.num_stages = len(self.depths)
        self.channels = resolve_widths(positive_ints('channels', channels, self.num_stages), width_factor)
        check_number('in_channels', in_channels, 'a positive int', lambda number: number > 0, kinds=int)
        check_number('ffn_ratio', ffn_ratio, f'positive and give {min(self.channels)} channels a hidden one',
                     lambda ratio: 0 < ratio < inf and min(self.channels) * ratio >= 1)
        check_number('drop_path_rate', drop_path_rate, 'in [0, 1)', lambda rate: 0 <= rate < 1)
        check_number('layer_scale_init_value', layer_scale_init_value, 'at least 0', lambda value: 0 <= value < inf)
        self.out_indices = stage_indices(out_indices, self.num_stages)
        check_number('frozen_stages', frozen_stages, f'in 0 ... {self.num_stages}',
                     lambda number: 0 <= number <= self.num_stages, kinds=int)
        check_number('stem_patch_size', stem_patch_size, 'a positive int', lambda side: side > 0, kinds=int)
        self.stem_patch_size = stem_patch_size
        self.frozen_stages = frozen_stages
        self.gap_before_final_norm = gap_before_final_norm
        check_factory('norm_layer', norm_layer, 'nn.BatchNorm2d')
        check_factory('act_layer', act_layer, 'nn.GELU')
        if branch_norm_layer is not None:
            check_factory('branch_norm_layer', branch_norm_layer, 'nn.BatchNorm2d, or None')
        self.branch_norm_layer = branch_norm_layer
        blocks_in_all = sum(self.depths)
        drop_path_rates = (drop_path_rate * i / max(blocks_in_all - 1, 1) for i in range(blocks_in_all))
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        # Stages after the last one that is returned are not built.
        built = self.out_indices[-1] + 1
        for stage, (depth, width) in enumerate(zip(self.depths[:built], self.channels)):
            if stage == 0:
                downsample = nn.Sequential(
                    Conv2d(in_channels, width, kernel_size=stem_patch_size, stride=stem_patch_size), norm_layer(width))
            else:
                previous = self.channels[stage - 1]
                downsample = nn.Sequential(norm_layer(previous), Conv2d(previous, width, kernel_size=2, stride=2))
            self.downsample_layers.append(downsample)
            blocks = [
                LargeKernelBlock(width, self.build_mixer(stage, width), ffn_ratio, norm_layer, act_layer,
                                 next(drop_path_rates), layer_scale_init_value, with_cp, use_grn) for _ in range(depth)
            ]
            self.stages.append(LargeKernelStage(blocks, self.build_position_embedding(stage, width)))
            if stage in self.out_indices:
                self.add_module(f'norm{stage}', norm_layer(width))
        # For build_mixer only: a net that held a lambda could not be pickled.
        del self.branch_norm_layer
        self._init_own_weights()
        self._freeze_stages()
        if deploy:
            self.switch_to_deploy()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each output, as heads and necks take them."""
        return tuple(self.channels[index] for index in self.out_indices)

    def build_mixer(self, stage: int, channels: int) -> nn.Module:
        """Make the token mixer of one block of ``stage``; ``self.branch_norm_layer`` makes its norms, or is None."""
        raise TypeError(f'{type(self).__name__} must define build_mixer: LargeKernelNet is a skeleton')

    def build_position_embedding(self, stage: int, channels: int) -> nn.Module | None:
        """Make the embedding that the mixers of ``stage`` share, or None."""
        return None

    @count_statistics_once
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x (Tensor): (N, in_channels, H, W), H and W at least stem_patch_size * 2**(stages - 1).

        Returns:
            tuple[Tensor, ...]: One per out index: (N, C_i, H / s, W / s) with s = stem_patch_size * 2**i, rounded down;
            (N, C_i) with ``gap_before_final_norm``.
        """
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
            if isinstance(module, ReparamDepthwiseConv):
                module.check_norms(f'{clean_name(name)}.')
        for stage in self.stages:
            stage.switch_to_deploy()

    def is_of_unbuilt_stage(self, name: str) -> bool:
        """Return whether a state dict's name is of a stage or an output norm that ``out_indices`` leaves out."""
        part, _, rest = name.partition('.')
        if part in ('stages', 'downsample_layers'):
            return rest.partition('.')[0] in map(str, range(len(self.stages), self.num_stages))
        return part in {f'norm{stage}' for stage in set(range(self.num_stages)) - set(self.out_indices)}

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Load also checkpoints with more stages, and those saved inside other wrappers."""
        names = chain(self.named_parameters(), self.named_buffers())
        # These two wrappers have their own hooks for saving and loading a state dict.
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
        """Return the weights that sparse training masks, by name: those of 2 or 4 dimensions, as in SLaK.

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
        """Return the depth of a parameter for learning-rate decay, as ConvNeXt groups it.

        Layer-wise: the stem is 0, stages 1 and 2 are one group each, stage 3 is cut into groups of three blocks, the
        last stage is the last group. There are 6 groups, 12 if the third stage has more than 9 blocks, and more if that
        is not enough. Stage-wise: all downsampling is 0, stage i is i + 1. Output norms and parameters outside the
        backbone are not decayed.

        Args:
            param_name (str): Full name, e.g. ``'backbone.stages.0.blocks.1.gamma'``; parts that wrappers add do not
                matter.
            prefix (str): Precedes the backbone's own names, e.g. ``'backbone.'``.
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
