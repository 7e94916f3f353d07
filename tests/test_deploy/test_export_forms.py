"""What replaces operations that exporters do not know computes the same, at every size."""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from pelk_mm.deploy import ImageModel, capture, prepare_for_export
from pelk_mm.deploy.export import AveragePoolByProducts
from pelk_mm.deploy.onnx_ops import translations
from pelk_mm.layers import PeripheralConv2d
from pelk_mm.testing.tiny_models import build_tiny_model, tiny_config

# A grid of the paper, one without sharing, one that grows inwards, wide centres, 1x1, and whether there is a bias.
GRIDS = [(51, True), (5, True), ([1, 2, 4, 8, 1], False), ([3, 5], True), ([1], True), ([7, 1], False)]
SIZES = [(1, 1), (1, 9), (7, 5), (14, 31), (60, 33)]


class Convolutions(nn.Module):
    """One peripheral convolution for each grid."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(PeripheralConv2d(3, grid, bias=bias, backend='reference') for grid, bias in GRIDS)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        return tuple(conv(x) for conv in self.convs)


@pytest.fixture(scope='module')
def session():
    """All grids in ONNX's operations."""
    model = Convolutions()
    for conv in model.convs:
        conv.backend = 'boxes'
    dynamic = dict(x={0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    program = torch.export.export(model, (torch.zeros(2, 3, 8, 9), ), dynamic_shapes=dynamic)
    result = torch.onnx.export(
        program, dynamo=True, opset_version=20, custom_translation_table=translations(), verbose=False)
    assert all(not node.domain and node.op_type != 'Conv' for node in result.model.graph)
    return onnxruntime.InferenceSession(result.model_proto.SerializeToString())


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_onnx_operations_are_the_peripheral_convolution(session, size):
    x = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = Convolutions()(x)
    for (grid, _), value, got in zip(GRIDS, expected, session.run(None, {'x': x.numpy()})):
        np.testing.assert_allclose(got, value.numpy(), rtol=0, atol=2e-6 * value.abs().max().item(), err_msg=str(grid))


def test_the_dense_form_is_the_peripheral_convolution():
    model = Convolutions().double()
    dense = prepare_for_export(model, 'dense')
    assert all(type(conv) is nn.Conv2d for conv in dense.convs)
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.double, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(dense(x), model(x))


@pytest.mark.parametrize('bins', [2, 3, 6, (3, 5), (None, 4)], ids=str)
def test_pooling_by_products(bins):
    pool = AveragePoolByProducts(bins)
    for size in SIZES:
        x = torch.rand(2, 3, *size, dtype=torch.double)
        torch.testing.assert_close(pool(x), nn.AdaptiveAvgPool2d(bins)(x))


def test_the_model_is_left_as_it_is():
    model = nn.Sequential(PeripheralConv2d(3, 13), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(1))
    kinds = ['PeripheralConv2d', 'AdaptiveAvgPool2d', 'AdaptiveAvgPool2d']
    for form, expected in dict(
            fast=['PeripheralConv2d', 'AveragePoolByProducts', 'AdaptiveAvgPool2d'],
            dense=['Conv2d', 'AveragePoolByProducts', 'AdaptiveAvgPool2d']).items():
        prepared = prepare_for_export(model, form)
        assert [type(module).__name__ for module in prepared] == expected
        assert not any(parameter.requires_grad for parameter in prepared.parameters())
    assert [type(module).__name__ for module in model] == kinds
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"kernel_form must be one of \('fast', 'dense'\), got 'sparse'"):
        prepare_for_export(model, 'sparse')


def test_backbones_whose_eval_returns_nothing():
    """As mmdet's ResNet."""

    class Silent(nn.Sequential):

        def train(self, mode=True):
            super().train(mode)

    prepared = prepare_for_export(Silent(nn.Dropout()), 'dense')
    assert isinstance(prepared, Silent)
    assert not prepared[0].training


def test_the_old_exporter_is_refused_and_what_it_advises_works(tmp_path):
    """``torch.onnx.export(..., dynamo=False)`` by hand, then both ways that the message names."""
    model = build_tiny_model(tiny_config('classification'))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(images)[0].numpy()
    with pytest.raises(RuntimeError, match='dynamo=True, custom_translation_table=.*prepare_for_export'):
        torch.onnx.export(model.backbone, (images, ), io.BytesIO(), dynamo=False)
    new = tmp_path / 'new.onnx'
    torch.onnx.export(
        model.backbone, (images, ), str(new), dynamo=True, custom_translation_table=translations(), verbose=False)
    model.backbone.switch_to_deploy()
    old = io.BytesIO()
    torch.onnx.export(prepare_for_export(model.backbone, 'dense'), (images, ), old, dynamo=False)
    for file in (str(new), old.getvalue()):
        session = onnxruntime.InferenceSession(file)
        got, = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_sizes_stay_open_where_corners_are_aligned():
    """mmseg's resize() makes numbers of sizes then, to warn of them."""
    cfg = tiny_config('segmentation')
    cfg.model.decode_head.align_corners = True
    model = build_tiny_model(cfg)
    package = capture(ImageModel(model, 'segmentation', 'fast')).module()
    reference = ImageModel(model, 'segmentation').eval()
    for shape in ((1, 3, 64, 96), (2, 3, 75, 85)):
        images = torch.rand(shape) * 255
        with torch.no_grad():
            torch.testing.assert_close(package(images)[0], reference(images)[0], rtol=1e-4, atol=1e-4)


def test_models_that_cannot_be_traced_are_named(monkeypatch):
    model = build_tiny_model(tiny_config('classification'))
    monkeypatch.setattr(type(model.head), 'forward', lambda self, feats: self.fc(feats[-1]) * bool(feats[-1].sum() > 0))
    with pytest.raises(RuntimeError, match='ImageClassifier .*head LinearClsHead.* cannot be exported') as caught:
        capture(ImageModel(model, 'classification', 'fast'))
    assert len(str(caught.value)) < 600
