"""Bytes that a block moves, in inference and in training: PeLK-T's first stage, where 46 of 124 channels are convolved."""

from unittest.mock import MagicMock

import pytest
import torch

from pelk_mm.nets import PeLK
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
    cell_sums = stage.position_embedding().detach().requires_grad_()
    with MemoryTraffic(SIDE * SIDE) as forward:
        out = stage.blocks[1](x, cell_sums)
    grad = torch.ones_like(out)
    with MemoryTraffic(SIDE * SIDE) as backward:
        out.backward(grad)
    return channels(forward), channels(backward)


def test_inference(stage, x):
    assert inference(stage, x) == dict(
        op=2 * G, layout=2 * C, norm=2 * C, linear=LINEAR,
        # Layer scale and residual.
        elementwise=GELU + 2 * C + 3 * C)


def test_inference_with_a_backend_for_planes(stage, x, planes_only):
    """On GPUs."""
    assert inference(stage, x) == dict(
        # To planes and back.
        op=2 * G, layout=2 * C + 4 * G, norm=2 * C, linear=LINEAR, elementwise=GELU + 5 * C)


def test_training(stage, x):
    forward, backward = training(stage, x)
    assert forward == dict(
        op=2 * G, convolution=2 * G,
        # The small convolution copies its input.
        layout=2 * C + 2 * G,
        norm=2 * 2 * G + 2 * C, linear=LINEAR,
        # Sum of branches, position constant; layer scale, drop path (twice), residual.
        elementwise=3 * G + 2 * G + GELU + 2 * C + 4 * C + 3 * C)
    assert backward == dict(
        op=4 * G, convolution=3 * G,
        # Slices: two tensors with zeros in the place of the other channels.
        layout=2 * G + (G + C) + (C - G + C),
        norm=2 * 3 * G + 3 * C, linear=LINEAR_GRADS,
        # Drop path, layer scale, its gradient; position constant; two branches; three gradients of the input.
        elementwise=GELU_GRAD + BIAS_SUMS + 4 * C + 2 * C + 4 * C + G + 3 * G + 6 * C)


def test_training_with_a_backend_for_planes(stage, x, planes_only):
    forward, backward = training(stage, x)
    assert forward['layout'] == 2 * C + 2 * G + 4 * G
    # The op's gradient of x; the input and the output's gradient for that of theta.
    assert backward['layout'] == 2 * G + (G + C) + (C - G + C) + 4 * G + 4 * G
