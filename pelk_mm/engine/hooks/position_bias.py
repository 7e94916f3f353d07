"""Start from a checkpoint with other window sizes."""

from __future__ import annotations

from math import isqrt

import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pelk_mm.module_names import clean_name
from pelk_mm.registry import HOOKS

from ..sharding import unwrap

_TABLE, _INDEX = 'relative_position_bias_table', 'relative_position_index'


@HOOKS.register_module()
class ResizePositionBiasHook(Hook):
    """Fit a loaded checkpoint's relative position biases to the windows of the model, bicubically, as Swin does.

    mmpretrain's own way needs ``scipy.interpolate.interp2d``, which SciPy 1.14 removed.

    Examples:
        >>> custom_hooks = [dict(type='pelk_mm.ResizePositionBiasHook')]
    """

    # Before EMAHook, which loads the checkpoint into its own copy.
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace each table of another size, (L, heads), in the checkpoint, and the index that belongs to it."""
        own = {clean_name(name): tensor for name, tensor in unwrap(runner.model).state_dict().items()}
        loaded = checkpoint.get('state_dict', checkpoint)
        resized = 0
        for name in [name for name in loaded if name.endswith(_TABLE) and clean_name(name) in own]:
            table, target = loaded[name], own[clean_name(name)]
            if len(table) == len(target):
                continue
            before, after = isqrt(len(table)), isqrt(len(target))
            image = table.float().T.reshape(1, -1, before, before)
            image = F.interpolate(image, size=(after, after), mode='bicubic', align_corners=False)
            loaded[name] = image.reshape(-1, after * after).T.to(table.dtype)
            index = name.replace(_TABLE, _INDEX)
            loaded[index] = own[clean_name(index)]
            resized += 1
        if resized:
            runner.logger.info(f'{resized} tables of relative position biases resized to the windows of the model')
