"""Count multiply-adds while a model runs, on the meta device or on a real one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pelk_mm.layers import PeripheralConv2d
from pelk_mm.ops import SharingGrid

from .inputs import count_channels

_CONVOLUTION = torch.ops.aten.convolution
_LINEAR = (torch.ops.aten.mm, torch.ops.aten.addmm)
_PERIPHERAL = torch.ops.pelk_mm.peripheral_conv2d


def count_macs(model: nn.Module, shape: Sequence[int], rois: tuple[int, int] | None) -> dict[tuple[str, str], int]:
    """Run a model on one image and count its multiply-adds.

    Args:
        model (nn.Module): A classifier, segmentor or detector of MMEngine's kind, or any module that takes an image.
        shape (Sequence[int]): Height and width of the image.
        rois (tuple[int, int] | None): Proposals through the box and through the mask heads if it has RoI heads.

    Returns:
        dict[tuple[str, str], int]: See :attr:`MacCounter.macs`.

    Raises:
        RuntimeError: If the model is on the meta device and cannot run there.
    """
    inputs = torch.zeros(1, count_channels(model), *shape, device=_device(model))
    try:
        with MacCounter(model).count() as counter:
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
    return counter.macs


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _run_two_stage(model: Any, inputs: Tensor, num_rois: int, num_mask_rois: int) -> None:
    """Run a two-stage detector on a fixed number of proposals; their positions do not change the costs."""
    features = model.extract_feat(inputs)
    if model.with_rpn:
        model.rpn_head(features)
    heads = model.roi_head
    if heads.with_bbox:
        _run_roi_heads(heads, heads.bbox_roi_extractor, heads.bbox_head, num_rois)
    if heads.with_mask:
        _run_roi_heads(heads, heads.mask_roi_extractor, heads.mask_head, num_mask_rois)


def _run_roi_heads(roi_head: Any, extractors: Any, heads: Any, num_rois: int) -> None:
    stages = zip(extractors, heads) if isinstance(heads, nn.ModuleList) else [(extractors, heads)]
    for extractor, head in stages:
        size = extractor.roi_layers[0].output_size
        features = torch.zeros(num_rois, extractor.out_channels, *size, device=_device(head))
        head(roi_head.shared_head(features) if roi_head.with_shared_head else features)


class MacCounter(TorchDispatchMode):
    """Count multiply-adds of convolutions, linear layers and products of activations, by module and kind of part.

    The formulas are PyTorch's (``torch.utils.flop_counter``); the peripheral convolution is counted in dense form,
    K * K taps a channel, not the operations of its backend.

    Args:
        model (nn.Module): Its submodules' names are the keys of the counts.

    Attributes:
        macs (dict[tuple[str, str], int]): By name of the innermost module that runs the operator, ``''`` outside
            all, and kind of part.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs: dict[tuple[str, str], int] = defaultdict(int)
        self._model = model
        self._running: list[tuple[str, nn.Module]] = [('', model)]

    @contextmanager
    def count(self) -> Iterator[MacCounter]:
        """Count what runs in this context, without gradients."""
        handles = []
        for name, module in self._model.named_modules():
            handles += [
                module.register_forward_pre_hook(lambda *_, entry=(name, module): self._running.append(entry)),
                module.register_forward_hook(lambda *_: self._leave(), always_call=True)
            ]
        try:
            with torch.no_grad(), self:
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._running.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = func.overloadpacket
        if operator is _PERIPHERAL:
            half_grid = args[3]
            macs = out.numel() * SharingGrid(tuple(half_grid)).kernel_size**2
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
    """The kind of part, a key of ``pelk_mm.analysis.complexity.PARTS``, that a convolution is."""
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
