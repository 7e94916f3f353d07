"""The operators of ``mmcv._ext`` by torchvision and PyTorch, under mmcv's names and with mmcv's arguments.

``mmcv.ops`` calls these inside its autograd functions: without gradients, and mostly with tensors to write into. The
operators that mmdet, mmseg and mmpretrain call are here, for every device that torchvision has code for. All others
raise :class:`MissingOperator` when they are called.

NMS and RoIAlign equal mmcv's compiled code bit for bit, the others to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import bbox_overlaps, nms, nms_match, softnms, vision_ops  # noqa: F401


class MissingOperator(RuntimeError):
    """An operator of mmcv that only its compiled code has."""


def __getattr__(name: str) -> Callable[..., Any]:
    """Return, for each operator that is not here, a function that raises :class:`MissingOperator`."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args: Any, **kwargs: Any) -> None:
        raise MissingOperator(f'mmcv.ops: {name} has no counterpart in torchvision or PyTorch. {_how_to_compile()}')

    missing.__name__ = missing.__qualname__ = name
    return missing


@cache
def _how_to_compile() -> str:
    names = metadata.packages_distributions().get('mmcv')
    requirement = f'{names[0]} {names[0]}=={metadata.version(names[0])}' if names else 'onedl-mmcv onedl-mmcv'
    return ('It needs the compiled operators of mmcv, which build with PyTorch below 2.14 and a C++17 compiler: '
            'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall --no-binary '
            + requirement)


def get_compiler_version() -> str:
    """Name the replacement of the compiled code."""
    return 'none (torchvision and PyTorch, by pelk_mm.mmcv_ops)'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version that PyTorch, and with it torchvision, was built for."""
    return torch.version.cuda or 'not available'


# Regions of interest


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                      aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                      pool_mode: int, aligned: bool) -> None:
    """Write the average of bilinear samples in each bin of each region (Mask R-CNN, arXiv:1703.06870).

    ``rois`` holds the index of the image and corners, shape (N, 5); ``output`` has the shape (N, C, height, width).

    Raises:
        MissingOperator: If ``pool_mode`` is 0, the maximum.
    """
    _only_averages(pool_mode)
    output.copy_(
        vision_ops().roi_align(input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Write the gradient of :func:`roi_align_forward` into ``grad_input``."""
    _only_averages(pool_mode)
    grad_input.copy_(
        vision_ops()._roi_align_backward(grad_output, rois, spatial_scale, aligned_height, aligned_width,
                                         *grad_input.shape, sampling_ratio, aligned))


def _only_averages(pool_mode: int) -> None:
    if pool_mode != 1:
        raise MissingOperator("mmcv.ops: roi_align with pool_mode='max' has no counterpart in torchvision, only 'avg' "
                              f'has. {_how_to_compile()}')


def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int,
                     pooled_width: int, spatial_scale: float) -> None:
    """Write the maximum in each bin of each region, and its position (Fast R-CNN, arXiv:1504.08083)."""
    pooled, found = vision_ops().roi_pool(input, rois, spatial_scale, pooled_height, pooled_width)
    output.copy_(pooled)
    argmax.copy_(found)


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    """Write the gradient of :func:`roi_pool_forward` into ``grad_input``."""
    grad_input.copy_(
        vision_ops()._roi_pool_backward(grad_output, rois, argmax, spatial_scale, pooled_height, pooled_width,
                                   *grad_input.shape))


# Deformable convolutions, arXiv:1703.06211 and arXiv:1811.11168


def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *buffers: Tensor,
                        **options: int) -> None:
    """Write a deformable convolution; ``offset`` has y and x of each tap, shape (B, 2 G kH kW, H', W')."""
    output.copy_(vision_ops().deform_conv2d(*_deformed(input, weight, offset, None, None, options)))


def deform_conv_backward_input(input: Tensor, offset: Tensor, gradOutput: Tensor, gradInput: Tensor,
                               gradOffset: Tensor, weight: Tensor, *buffers: Tensor, **options: int) -> None:
    """Write the gradients of :func:`deform_conv_forward` for the input and the offsets."""
    gradients = vision_ops()._deform_conv2d_backward(gradOutput, *_deformed(input, weight, offset, None, None, options))
    gradInput.copy_(gradients[0])
    gradOffset.copy_(gradients[2])


def deform_conv_backward_parameters(input: Tensor, offset: Tensor, gradOutput: Tensor, gradWeight: Tensor,
                                    *buffers: Tensor, scale: float, **options: int) -> None:
    """Add the gradient of :func:`deform_conv_forward` for the weight, times ``scale``."""
    # It does not depend on the weight.
    tensors = _deformed(input, gradWeight, offset, None, None, options)
    gradWeight.add_(vision_ops()._deform_conv2d_backward(gradOutput, *tensors)[1], alpha=scale)


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                  mask: Tensor, output: Tensor, columns: Tensor, *, with_bias: bool,
                                  **options: int) -> None:
    """Write a deformable convolution whose taps ``mask`` weighs, shape (B, G kH kW, H', W')."""
    tensors = _deformed(input, weight, offset, mask, bias if with_bias else None, options)
    output.copy_(vision_ops().deform_conv2d(*tensors))


def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                   mask: Tensor, columns: Tensor, grad_input: Tensor, grad_weight: Tensor,
                                   grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor, *,
                                   with_bias: bool, **options: int) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    tensors = _deformed(input, weight, offset, mask, bias if with_bias else None, options)
    gradients = vision_ops()._deform_conv2d_backward(grad_output, *tensors)
    written = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias if with_bias else None)
    for target, gradient in zip(written, gradients):
        if target is not None:
            target.copy_(gradient)


def _deformed(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None,
              options: Mapping[str, int]) -> list:
    """Return arguments of torchvision's operator and its gradient; mmcv names stride, padding, dilation otherwise."""
    names = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW') if mask is None else (
        'stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
    no_mask, no_bias = offset.new_zeros((len(offset), 1)), weight.new_zeros(len(weight))
    return [input, weight, offset, no_mask if mask is None else mask, no_bias if bias is None else bias,
            *(options[name] for name in (*names, 'group', 'deformable_group')), mask is not None]


# Losses


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Write the focal loss of each class by itself (arXiv:1708.02002, equation 5).

    ``input`` holds logits, shape (N, C); ``target`` classes, C for the background, shape (N,); ``weight`` a number for
    each class, or nothing.
    """
    output.copy_(_sigmoid_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward`."""
    _write_gradients([grad_input], lambda x: _sigmoid_focal_loss(x, target, weight, gamma, alpha),
                     torch.ones_like(input), input)


def _sigmoid_focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss
    classes = logits.shape[1]
    one_hot = (target[:, None] == torch.arange(classes, device=target.device)).to(logits.dtype)
    return sigmoid_focal_loss(logits, one_hot, alpha, gamma) * _weight_of(target, weight, classes)[:, None]


def softmax_focal_loss_forward(softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Write the focal loss of probabilities, shape (N, C), into ``output``, shape (N,)."""
    output.copy_(_softmax_focal_loss(softmax, target, weight, gamma, alpha))


def softmax_focal_loss_backward(softmax: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor,
                                gamma: float, alpha: float) -> None:
    """Write the derivative of :func:`softmax_focal_loss_forward` for the logits, shape (N, C)."""
    logits = softmax.clamp(min=torch.finfo(softmax.dtype).tiny).log()
    _write_gradients([grad_input], lambda x: _softmax_focal_loss(x.softmax(1), target, weight, gamma, alpha),
                     torch.ones_like(buff), logits)


def _softmax_focal_loss(softmax: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    # Targets below zero are ignored.
    probability = softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]
    log = probability.clamp(min=torch.finfo(softmax.dtype).tiny).log()
    loss = -alpha * (1 - probability)**gamma * log
    return loss * _weight_of(target, weight, softmax.shape[1]) * (target >= 0)


def _weight_of(target: Tensor, weight: Tensor, classes: int) -> Tensor:
    """Return the weight of each sample's class; that of the background, which mmcv reads past the end, is 1."""
    if not weight.numel():
        return torch.ones_like(target, dtype=weight.dtype)
    return F.pad(weight, (0, 1), value=1.0)[target.clamp(0, classes)]


def _write_gradients(targets: Iterable[Tensor], function: Callable[..., Tensor], grad_output: Tensor,
                     *tensors: Tensor) -> None:
    """Write the gradients of a function for its tensors into targets, also where gradients are off."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        gradients = torch.autograd.grad(function(*leaves), leaves, grad_output)
    for target, gradient in zip(targets, gradients):
        target.copy_(gradient)


# Attention, upsampling, masks


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                           sampling_locations: Tensor, attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Return multi-scale deformable attention (arXiv:2010.04159) by mmcv's own PyTorch code, which uses grid_sample."""
    return _ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                            sampling_locations: Tensor, attention_weights: Tensor, grad_output: Tensor,
                            grad_value: Tensor, grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    _write_gradients((grad_value, grad_sampling_loc, grad_attn_weight),
                     lambda v, locations, weights: _ms_deform_attn(v, value_spatial_shapes, locations, weights),
                     grad_output, value, sampling_locations, attention_weights)


def _ms_deform_attn(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # mmcv.ops imports this module.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def carafe_forward(features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor, output: Tensor,
                   kernel_size: int, group_size: int, scale_factor: int) -> None:
    """Write features upsampled by kernels of their own at each output pixel (CARAFE, arXiv:1905.02188).

    ``masks`` holds the kernels, shape (B, G K K, sH, sW), of G groups of channels. ``rfeatures`` receives the features,
    which the backward pass gets in their place.
    """
    rfeatures.copy_(features)
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_backward(top_grad: Tensor, rfeatures: Tensor, masks: Tensor, rtop_grad: Tensor, rbottom_grad_hs: Tensor,
                    rbottom_grad: Tensor, rmask_grad: Tensor, bottom_grad: Tensor, mask_grad: Tensor, kernel_size: int,
                    group_size: int, scale_factor: int) -> None:
    """Write the gradients of :func:`carafe_forward` for features and masks."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int,
                         scale_factor: int) -> None:
    """Write the output of :func:`carafe_forward`."""
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(top_grad: Tensor, features: Tensor, masks: Tensor, bottom_grad: Tensor, mask_grad: Tensor,
                          kernel_size: int, group_size: int, scale_factor: int) -> None:
    """Write the gradients of :func:`carafe_naive_forward` for features and masks."""
    _write_gradients((bottom_grad, mask_grad), lambda f, m: _carafe(f, m, kernel_size, group_size, scale_factor),
                     top_grad, features, masks)


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    taps = kernel_size**2
    columns = F.unfold(features, kernel_size, padding=kernel_size // 2)
    columns = columns.view(batch, groups, channels // groups, taps, height, width)
    masks = masks.view(batch, groups, taps, height, scale, width, scale)
    upsampled = torch.einsum('bgcthw,bgthiwj->bgchiwj', columns, masks)
    return upsampled.reshape(batch, channels, height * scale, width * scale)


def masked_im2col_forward(im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, col: Tensor, kernel_h: int,
                          kernel_w: int, pad_h: int, pad_w: int) -> None:
    """Write the patches at some pixels of one image, shape (1, C, H, W), as columns, shape (C kH kW, pixels)."""
    columns = F.unfold(im, (kernel_h, kernel_w), padding=(pad_h, pad_w))[0]
    width = im.shape[3] + 2 * pad_w - kernel_w + 1
    col.copy_(columns[:, mask_h_idx * width + mask_w_idx])


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int,
                          channels: int) -> None:
    """Write columns, shape (C, pixels), to these pixels of one image, shape (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col


def psamask_forward(input: Tensor, output: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int,
                    h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int) -> None:
    """Spread the attention of each pixel, which is relative to the pixel, over the map (PSANet, ECCV 2018).

    ``input`` has the shape (B, mask height x mask width, H, W), ``output`` (B, H W, H, W). A ``psa_type`` of 0
    collects: channels of the output are the pixels attended to; 1 distributes: they are the pixels that attend.
    """
    taps, near, far = _psamask_places(psa_type, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    output.flatten(2)[:, near, far] = input.flatten(2)[:, taps, near if psa_type else far]


def psamask_backward(grad_output: Tensor, grad_input: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int,
                     h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int) -> None:
    """Write the gradient of :func:`psamask_forward`."""
    taps, near, far = _psamask_places(psa_type, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    grad_input.flatten(2)[:, taps, near if psa_type else far] = grad_output.flatten(2)[:, near, far]


def _psamask_places(psa_type: int, height: int, width: int, h_mask: int, w_mask: int, half_h: int,
                    half_w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention's tap and the output's channel and pixel, for each pair of a pixel and one it attends to."""
    y, x, i, j = torch.meshgrid(*(torch.arange(size) for size in (height, width, h_mask, w_mask)), indexing='ij')
    other_y, other_x = y + i - half_h, x + j - half_w
    inside = (other_y >= 0) & (other_y < height) & (other_x >= 0) & (other_x < width)
    taps, pixel, other = (places[inside] for places in (i * w_mask + j, y * width + x, other_y * width + other_x))
    return (taps, pixel, other) if psa_type else (taps, other, pixel)
