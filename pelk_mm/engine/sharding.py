"""FSDP through MMEngine's FlexibleRunner: the policy of wrapping, and a strategy that resumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine._strategy import FSDPStrategy
from mmengine.model import is_model_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pelk_mm.registry import FUNCTIONS, STRATEGIES

# Names of the strategies that shard a model.
FSDP_STRATEGIES = ('FSDPStrategy', 'pelk_mm.ResumableFSDPStrategy')


def unwrap(model: Any) -> Any:
    """Return the model inside the wrapper of distributed training, if there is one."""
    return model.module if is_model_wrapper(model) else model


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """MMEngine's ``FSDPStrategy`` that can resume; our tools take it where a config says ``FSDPStrategy``.

    MMEngine passes the optimiser's state to PyTorch as the first argument, which is the last one since PyTorch 2.1.
    """

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the state of the optimiser of the complete model, (dict) as :meth:`optim_state_dict` gives it."""
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict))


# The first name is what configs of 0.1.0 say.
@FUNCTIONS.register_module(name=['wrap_types', 'class_name_wrap_policy'])
def class_name_wrap_policy(module: nn.Module, recurse: bool, nonwrapped_numel: int,
                           types: Sequence[str]) -> bool:
    """Wrap, as an ``auto_wrap_policy`` of FSDP, every module whose class has one of these names as a unit of its own.

    The weights of a unit are gathered when it runs and let go afterwards. PyTorch's own policies take classes, which a
    config cannot hold. For the backbones here the name is ``'LargeKernelBlock'``.
    """
    return recurse or type(module).__name__ in types
