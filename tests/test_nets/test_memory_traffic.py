"""Bytes that a block moves, in inference and in training.

It is a block of PeLK-T's first stage: 46 of 124 channels are convolved.
"""

from unittest.mock import MagicMock

import pytest
import torch

from pelk_mm.layers import partial
from pelk_mm.nets import PeLK
from pelk_mm.ops import concat_layer_norm
from pelk_mm.ops.peripheral_conv2d import operators, triton_backend
from pelk_mm.ops.peripheral_conv2d.backends import BACKENDS
from pelk_mm.testing.memory_traffic import MemoryTraffic

C, G, SIDE = 124, 46, 56
# Two pointwise layers and GELU between them. In training their inputs' and weights' gradients, and the biases' sums.
LINEAR, GELU = 2 * 5 * C, 2 * 4 * C
LINEAR_GRADS, GELU_GRAD, BIAS_SUMS = 2 * LINEAR, 3 * 4 * C, 5 * C


@pytest.fixture
def stage():
    net = PeLK('tiny', depths=(2, 1, 1, 1), out_indices=0, gap_before_final_norm=False, drop_path_rate=0.1)
    return net.stages[0]


@pytest.fixture
def x():
    return torch.randn(1, C, SIDE, SIDE).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def planes_only(monkeypatch):
    """The Triton backend's host side, which needs planes, with kernels that do nothing."""
    monkeypatch.setattr(triton_backend, '_kernels', MagicMock())
    monkeypatch.setattr(partial, '_reads_planes', lambda x: True)
    monkeypatch.setattr(operators, 'select_backend', lambda *args: BACKENDS['triton'])


def channels(traffic):
    """Bytes in units of one channel, read or written once."""
    return {kind: moved / (4 * SIDE * SIDE) for kind, moved in traffic.bytes.items()}


def inference(stage, x):
    stage.eval().switch_to_deploy()
    with torch.no_grad(), MemoryTraffic(SIDE * SIDE) as traffic:
        stage.blocks[1](x)
    return channels(traffic)


def training(stage, x):
    x.requires_grad_()
    position_cell_sums = stage.position_embedding().detach().requires_grad_()
    with MemoryTraffic(SIDE * SIDE) as forward:
        out = stage.blocks[1](x, position_cell_sums)
    grad = torch.ones_like(out)
    with MemoryTraffic(SIDE * SIDE) as backward:
        out.backward(grad)
    return channels(forward), channels(backward)


def test_inference(stage, x):
    assert inference(stage, x) == dict(
        op=2 * G, layout=2 * C, norm=2 * C, linear=LINEAR,
        # Layer scale and residual in one.
        elementwise=GELU + 3 * C)


def test_inference_on_gpus(stage, x, planes_only, monkeypatch):
    """The op's output stays in planes: LayerNorm reads it beside the other channels."""
    monkeypatch.setattr(concat_layer_norm, '_kernel', MagicMock())
    monkeypatch.setattr(concat_layer_norm, '_why_not', lambda *args: None)
    moved = inference(stage, x)
    assert moved == dict(op=2 * G, layout=2 * G, norm=2 * C, linear=LINEAR, elementwise=GELU + 3 * C)
    assert (moved['op'] + moved['layout'] + moved['norm']) / C < 3.5


def test_inference_on_gpus_of_a_net_that_convolves_all_channels(x, planes_only, monkeypatch):
    """A grown ConvNeXt."""
    monkeypatch.setattr(concat_layer_norm, '_kernel', MagicMock())
    monkeypatch.setattr(concat_layer_norm, '_why_not', lambda *args: None)
    net = PeLK('tiny', depths=(2, 1, 1, 1), out_indices=0, gap_before_final_norm=False, conv_ratio=1)
    moved = inference(net.stages[0], x)
    assert (moved['op'], moved['layout'], moved['norm']) == (2 * C, 2 * C, 2 * C)


def test_inference_on_gpus_without_the_fused_kernel(stage, x, planes_only):
    assert inference(stage, x)['layout'] == 4 * G + 2 * C


def test_training(stage, x):
    forward, backward = training(stage, x)
    assert forward == dict(
        op=2 * G, convolution=2 * G,
        # Both convolutions read a copy without gaps.
        layout=2 * C + 2 * G,
        norm=2 * 2 * G + 2 * C, linear=LINEAR,
        # Sum of branches, position constant; drop path, layer scale and residual in one.
        elementwise=3 * G + 2 * G + GELU + 3 * C)
    assert backward == dict(
        op=4 * G, convolution=3 * G,
        # Of the split.
        layout=2 * C,
        norm=2 * 3 * G + 3 * C, linear=LINEAR_GRADS,
        # Layer scale, its gradient; position constant; two branches; two gradients of the input.
        elementwise=GELU_GRAD + BIAS_SUMS + 2 * C + 6 * C + G + 3 * G + 3 * C)


def test_training_on_gpus(stage, x, planes_only):
    forward, backward = training(stage, x)
    # To planes and back, once each way.
    assert forward['layout'] == 2 * C + 4 * G
    # Of the split. (PyTorch's norms read gradients with gaps.)
    assert backward['layout'] == 2 * C
