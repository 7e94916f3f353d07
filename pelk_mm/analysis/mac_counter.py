"""Count a model's dense multiply-adds and the operations a backend executes, on the meta device and on real ones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pelk_mm.layers import PeripheralConv2d
from pelk_mm.ops import SharingGrid
from pelk_mm.ops.peripheral_conv2d.operations import Operations, executed_operations

from .inputs import count_channels

_CONVOLUTION = torch.ops.aten.convolution
_LINEAR = (torch.ops.aten.mm, torch.ops.aten.addmm)
_PERIPHERAL = torch.ops.pelk_mm.peripheral_conv2d


def count_macs(model: nn.Module, shape: Sequence[int], rois: tuple[int, int] | None, backend: str) -> MacCounter:
    """Run a model on one image and count its operations.

    Args:
        model (nn.Module): A classifier, segmentor or detector of MMEngine's kind, or any module that takes an image.
        shape (Sequence[int]): Height and width of the image.
        rois (tuple[int, int] | None): Proposals through the box and through the mask heads if it has RoI heads.
        backend (str): As for :class:`MacCounter`.

    Raises:
        ValueError: If there is no such backend.
        RuntimeError: If the model is on the meta device and cannot run there.
    """
    inputs = torch.zeros(1, count_channels(model), *shape, device=next(model.parameters()).device)
    counter = MacCounter(model, backend)
    try:
        with counter.count():
            if rois is not None:
                _run_two_stage(model, inputs, *rois)
            elif isinstance(model, BaseModel):
                meta = dict.fromkeys(('img_shape', 'batch_input_shape', 'pad_shape', 'ori_shape'), tuple(shape))
                model(inputs, [BaseDataElement(metainfo=meta)], mode='tensor')
            else:
                model(inputs)
    except (NotImplementedError, RuntimeError) as error:
        # Anything else would fail on the CPU too.
        if not inputs.is_meta or not (isinstance(error, NotImplementedError) or 'meta' in str(error).lower()):
            raise
        raise RuntimeError(f'{type(model).__name__} does not run on the meta device ({error}); '
                           'count it on the CPU, with --device cpu') from error
    return counter


def _run_two_stage(model: Any, inputs: Tensor, num_rois: int, num_mask_rois: int) -> None:
    """Run a two-stage detector on a fixed number of proposals; their positions do not change the costs."""
    features = model.extract_feat(inputs)
    if model.with_rpn:
        model.rpn_head(features)
    heads = model.roi_head
    for kind, count in (('bbox', num_rois), ('mask', num_mask_rois)):
        if not getattr(heads, f'with_{kind}'):
            continue
        extractors, stages = getattr(heads, f'{kind}_roi_extractor'), getattr(heads, f'{kind}_head')
        if not isinstance(stages, nn.ModuleList):
            extractors, stages = [extractors], [stages]
        for extractor, head in zip(extractors, stages):
            size = extractor.roi_layers[0].output_size
            rois = inputs.new_zeros(count, extractor.out_channels, *size)
            head(heads.shared_head(rois) if heads.with_shared_head else rois)


class MacCounter(TorchDispatchMode):
    """Count multiply-adds of convolutions, linear layers and products of activations, by module and kind of part.

    The formulas are PyTorch's (``torch.utils.flop_counter``); the peripheral convolution is counted in dense form,
    K * K taps a channel, and beside that what a backend would execute, also if another one runs.

    Args:
        model (nn.Module): Its submodules' names are what the counts are attributed to.
        backend (str): See :func:`pelk_mm.ops.peripheral_conv2d.operations.executed_operations`.

    Attributes:
        macs (dict[tuple[str, str], int]): By name of the innermost module that runs the operator, ``''`` outside
            all, and kind of part.
        executed (dict[str, Operations]): By name of a :class:`pelk_mm.layers.PeripheralConv2d`.
    """

    def __init__(self, model: nn.Module, backend: str) -> None:
        super().__init__()
        self.macs: dict[tuple[str, str], int] = defaultdict(int)
        self.executed: dict[str, Operations] = defaultdict(Operations)
        self._model, self._backend = model, backend
        self._running: list[tuple[str, nn.Module]] = [('', model)]

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count what runs in this context, without gradients."""
        with ExitStack() as hooks, torch.no_grad(), self:
            for name, module in self._model.named_modules():
                hooks.enter_context(module.register_forward_pre_hook(partial(self._enter, name)))
                hooks.enter_context(module.register_forward_hook(self._leave, always_call=True))
            yield

    def _enter(self, name: str, module: nn.Module, args: tuple) -> None:
        self._running.append((name, module))
        if isinstance(module, PeripheralConv2d):
            self.executed[name] += executed_operations(self._backend, args[0], module.grid)

    def _leave(self, *args: Any) -> None:
        self._running.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = func.overloadpacket
        if operator is _PERIPHERAL:
            macs = out.numel() * SharingGrid(tuple(args[3])).kernel_size**2
        elif operator in flop_registry:
            macs = flop_registry[operator](*args, **kwargs, out_val=out) // 2
        else:
            return out
        name, module = self._running[-1]
        self.macs[name, _part_of(operator, args, module)] += macs
        return out


def peripheral_conv2d_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count the operator for the analyzers of MMEngine and fvcore, which by themselves count it as 0.

    ``FlopAnalyzer(model, images).set_op_handle('pelk_mm::peripheral_conv2d', peripheral_conv2d_flops)``

    Args:
        inputs (Sequence[torch._C.Value]): Of the node in the traced graph.
        outputs (Sequence[torch._C.Value]): The one output.

    Returns:
        int: Multiply-adds in dense form, as these analyzers count a convolution.
    """
    half = tuple(value.toIValue() for value in inputs[3].node().inputs())
    return math.prod(outputs[0].type().sizes()) * SharingGrid(half).kernel_size**2


def part_of_convolution(kernel_size: Sequence[int], stride: Sequence[int], groups: int, in_channels: int) -> str:
    """Return the kind of part, a key of ``pelk_mm.analysis.complexity.PARTS``, that a convolution is."""
    if groups > 1 and groups == in_channels:
        return 'large_kernel' if max(kernel_size) > 7 else 'small_kernel'
    if max(stride) > 1:
        return 'downsampling'
    return 'pointwise' if max(kernel_size) == 1 else 'convolution'


def _part_of(operator, args: tuple, module: nn.Module) -> str:
    if isinstance(module, PeripheralConv2d):
        return 'large_kernel'
    if operator is _CONVOLUTION:
        x, weight, _, stride, *_, groups = args
        return part_of_convolution(weight.shape[2:], stride, groups, x.shape[1])
    return 'pointwise' if operator in _LINEAR else 'attention'
