"""Block and stage of every large-kernel network here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.utils.checkpoint as cp
from torch import Tensor, nn

from ..layers import GRN, DropPath, LayerNorm2d, PartialMixer, count_statistics_once


class LargeKernelBlock(nn.Module):
    """Token mixer -> norm -> 1x1 (x ffn_ratio) -> act (-> GRN) -> 1x1 -> layer scale -> drop path -> + input.

    Args:
        channels (int): C.
        mixer (nn.Module): Maps (N, C, H, W) to the same shape; may take the stage's cell sums as second argument.
        ffn_ratio (float): Expansion of the pointwise layers.
        norm_layer (Callable[[int], nn.Module]): Makes the norm between mixer and pointwise layers.
        act_layer (Callable[[], nn.Module]): Makes the activation between the pointwise layers.
        drop_path_rate (float): Probability of dropping the residual branch of a sample.
        layer_scale_init_value (float): Initial layer scale; 0 leaves it out.
        with_cp (bool): Recompute the block in the backward pass to save memory.
        use_grn (bool): Whether a :class:`~pelk_mm.layers.GRN` follows the activation. Defaults to False.
    """

    def __init__(self, channels: int, mixer: nn.Module, ffn_ratio: float, norm_layer: Callable[[int], nn.Module],
                 act_layer: Callable[[], nn.Module], drop_path_rate: float, layer_scale_init_value: float,
                 with_cp: bool, use_grn: bool = False) -> None:
        super().__init__()
        hidden = int(channels * ffn_ratio)
        self.mixer = mixer
        self.norm = norm_layer(channels)
        self.pointwise_conv1 = nn.Linear(channels, hidden)
        self.act = act_layer()
        self.grn = GRN(hidden) if use_grn else None
        self.pointwise_conv2 = nn.Linear(hidden, channels)
        self.gamma = nn.Parameter(
            torch.full((channels, ), float(layer_scale_init_value))) if layer_scale_init_value > 0 else None
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.with_cp = with_cp

    def forward(self, x: Tensor, position_cell_sums: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, position_cell_sums, use_reentrant=False)
        return self._forward(x, position_cell_sums)

    @count_statistics_once
    def _forward(self, x: Tensor, position_cell_sums: Tensor | None) -> Tensor:
        out = self._mix_and_norm(*((x, ) if position_cell_sums is None else (x, position_cell_sums)))
        out = out.permute(0, 2, 3, 1)
        out = self.act(self.pointwise_conv1(out))
        if self.grn is not None:
            out = self.grn(out)
        out = self.pointwise_conv2(out).permute(0, 3, 1, 2)
        if self.gamma is None:
            return x + self.drop_path(out)
        scale = self.gamma.view(1, -1, 1, 1)
        if self.drop_path.training:
            # It multiplies each sample by a number, so it may multiply gamma in place of the output.
            scale = self.drop_path(scale.expand(out.shape[0], -1, 1, 1))
        return torch.addcmul(x, scale, out)

    def _mix_and_norm(self, *inputs: Tensor) -> Tensor:
        # Compilers fuse the concatenation with the norm by themselves.
        if not torch.compiler.is_compiling() and _is_plain(self.mixer, PartialMixer) and _is_plain(
                self.norm, LayerNorm2d):
            return cast(LayerNorm2d, self.norm).norm_parts(*cast(PartialMixer, self.mixer).mix_parts(*inputs))
        return self.norm(self.mixer(*inputs))


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module does only what its class says: it is not wrapped, and no hook waits for its tensors."""
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                                         or module._backward_pre_hooks)


class LargeKernelStage(nn.Module):
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
        position_cell_sums = self._position_cell_sums()
        for block in self.blocks:
            x = block(x, position_cell_sums)
        return x

    def switch_to_deploy(self) -> None:
        """Merge every mixer that can be merged, and the embedding into their biases."""
        position_cell_sums = self._position_cell_sums()
        for module in list(self.blocks.modules()):
            if hasattr(module, 'switch_to_deploy'):
                module.switch_to_deploy(position_cell_sums)
        self.position_embedding = None

    def _position_cell_sums(self) -> Tensor | None:
        return None if self.position_embedding is None else self.position_embedding()
