"""Operators by torchvision and PyTorch against mmcv's compiled ones, and against definitions where these need a GPU."""

import ast
import itertools
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmcv import ops

from pelk_mm.mmcv_ops import extension

from . import compiled_cases


@pytest.fixture(scope='module')
def compiled():
    return dict(np.load(compiled_cases.FILE))


@pytest.fixture(scope='module')
def ours():
    """Results of the same cases by the stand-in, also where compiled operators are installed."""
    modules = [module for name, module in sys.modules.items() if name.startswith('mmcv.ops.')]
    before = {module: module.ext_module for module in modules if hasattr(module, 'ext_module')}
    assert len(before) > 40
    for module in before:
        module.ext_module = extension
    yield compiled_cases.results()
    for module, installed in before.items():
        module.ext_module = installed


def requested_names() -> set:
    """Every name that a module of ``mmcv.ops`` asks ``mmcv._ext`` for."""
    names, modules = set(), 0
    for file in (Path(mmcv.__file__).parent / 'ops').glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('load_ext'):
                names.update(ast.literal_eval(node.args[1]))
                modules += 1
    assert modules > 40
    return names


SERVED = """
bbox_overlaps nms nms_match softnms get_compiler_version get_compiling_cuda_version
carafe_forward carafe_backward carafe_naive_forward carafe_naive_backward masked_im2col_forward masked_col2im_forward
deform_conv_forward deform_conv_backward_input deform_conv_backward_parameters
modulated_deform_conv_forward modulated_deform_conv_backward ms_deform_attn_forward ms_deform_attn_backward
sigmoid_focal_loss_forward sigmoid_focal_loss_backward softmax_focal_loss_forward softmax_focal_loss_backward
psamask_forward psamask_backward roi_align_forward roi_align_backward roi_pool_forward roi_pool_backward
"""


def test_every_name_is_served_or_refused():
    served, refused = set(), 0
    for name in requested_names():
        function = getattr(extension, name)
        assert callable(function)
        if function.__name__ == name and function.__module__.startswith('pelk_mm.') and name in vars(extension):
            served.add(name)
            continue
        refused += 1
        with pytest.raises(extension.MissingOperator, match=f'mmcv.ops: {name} has no counterpart') as error:
            function(torch.ones(1), some_argument=1)
        assert 'MMCV_WITH_OPS=1 pip install' in str(error.value)
        assert 'mmcv==2.' in str(error.value)
    assert served == set(SERVED.split())
    assert refused > 60


def test_other_names_that_mmcv_imports_are_no_operators():
    assert not hasattr(extension, '__wrapped__')
    assert not hasattr(extension, '_C')


def test_there_are_results_for_every_case(compiled, ours):
    assert compiled.keys() == ours.keys()
    assert {name.partition('-')[0] for name in compiled} == {
        'nms', 'batched_nms', 'soft_nms', 'nms_match', 'bbox_overlaps', 'roi_align', 'deform_conv2d',
        'modulated_deform_conv2d', 'psa_mask'
    }
    assert compiled_cases.FILE.stat().st_size < 2**20


@pytest.mark.parametrize('name', np.load(compiled_cases.FILE).files)
def test_equals_compiled_operators(name, compiled, ours):
    expected, got = compiled[name], ours[name]
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if name.partition('-')[0] in compiled_cases.EXACT or expected.dtype.kind == 'i':
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


def gradients(function, *inputs):
    """The result of a function and its gradients, for fp64 inputs; the result is weighed by fixed numbers."""
    inputs = [each.clone().requires_grad_() if each.is_floating_point() else each for each in inputs]
    result = function(*inputs)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return result.detach(), torch.autograd.grad(result, [each for each in inputs if each.requires_grad], weights)


def assert_same(function, definition, *inputs):
    result, found = gradients(function, *inputs)
    expected, wanted = gradients(definition, *inputs)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures('ours')
class TestDefinitions:
    """Operators that mmcv compiles for GPUs only, against loops over their definitions, in fp64."""

    @pytest.mark.parametrize('weighted', [False, True])
    @pytest.mark.parametrize('gamma', [2.0, 1.5])
    def test_sigmoid_focal_loss(self, weighted, gamma):
        torch.manual_seed(0)
        logits = 4 * torch.randn(7, 3, dtype=torch.float64)
        target = torch.tensor([0, 1, 2, 3, 3, 0, 2])
        weight = torch.rand(3, dtype=torch.float64) if weighted else None

        def definition(x):
            rows = []
            for row, label in zip(x, target.tolist()):
                p = row.sigmoid()
                positive = torch.arange(3) == label
                loss = torch.where(positive, -0.25 * (1 - p)**gamma * p.log(), -0.75 * p**gamma * (1 - p).log())
                rows.append(loss * (weight[label] if weighted and label < 3 else 1))
            return torch.stack(rows)

        assert_same(lambda x: ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, 'none'), definition, logits)
        torch.testing.assert_close(
            ops.sigmoid_focal_loss(logits, target, gamma, 0.25, weight, 'mean'),
            definition(logits).sum() / 7)

    @pytest.mark.parametrize('weighted', [False, True])
    def test_softmax_focal_loss(self, weighted):
        torch.manual_seed(1)
        logits = 3 * torch.randn(6, 4, dtype=torch.float64)
        # Targets below zero are ignored.
        target = torch.tensor([0, 1, 2, 3, -1, 0])
        weight = torch.rand(4, dtype=torch.float64) if weighted else None

        def definition(x):
            total = 0
            for row, label in zip(x, target.tolist()):
                if label >= 0:
                    p = row.softmax(0)[label]
                    total = total - 0.25 * (1 - p)**2 * p.log() * (weight[label] if weighted else 1)
            return total

        assert_same(lambda x: ops.softmax_focal_loss(x, target, 2.0, 0.25, weight, 'sum'), definition, logits)

    def test_roi_pool(self):
        torch.manual_seed(2)
        x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
        rois = torch.tensor([[0, 0, 0, 7, 7], [1, 2, 3, 8, 6], [1, 4, 4, 4, 4]], dtype=torch.float64)

        def definition(x):
            pooled = []
            for image, left, top, right, bottom in rois.int().tolist():
                crop = x[image, :, top:bottom + 1, left:right + 1]
                # Its bins are those of the paper.
                pooled.append(torch.nn.functional.adaptive_max_pool2d(crop, (2, 3)))
            return torch.stack(pooled)

        assert_same(lambda x: ops.roi_pool(x, rois, (2, 3), 1.0), definition, x)

    def test_multi_scale_deformable_attention(self):
        from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
        torch.manual_seed(3)
        shapes = torch.tensor([[4, 5], [2, 3]])
        starts = torch.tensor([0, 20])
        value = torch.randn(2, 26, 2, 3, dtype=torch.float64)
        locations = 1.4 * torch.rand(2, 4, 2, 2, 3, 2, dtype=torch.float64) - 0.2
        weights = torch.rand(2, 4, 2, 2, 3, dtype=torch.float64)

        def definition(value, locations, weights):
            """Weighted bilinear samples, zero outside of a level; pixel centres lie at halves."""
            total = 0
            for level, (height, width) in enumerate(shapes.tolist()):
                plane = value[:, starts[level]:starts[level] + height * width].view(2, height, width, 2, 3)
                x, y = locations[:, :, :, level].unbind(-1)
                columns = (1 - (x[..., None] * width - 0.5 - torch.arange(width)).abs()).clamp(min=0)
                rows = (1 - (y[..., None] * height - 0.5 - torch.arange(height)).abs()).clamp(min=0)
                # Images n, queries q, heads m, points p, channels c.
                total = total + torch.einsum('nqmp,nqmph,nqmpw,nhwmc->nqmc', weights[:, :, :, level], rows, columns,
                                             plane)
            return total.flatten(2)

        function = MultiScaleDeformableAttnFunction.apply
        assert_same(lambda x, *more: function(x, shapes, starts, *more, 64), definition, value, locations, weights)

    @pytest.mark.parametrize('operator', ['carafe', 'carafe_naive'])
    def test_carafe(self, operator, monkeypatch):
        torch.manual_seed(4)
        features = torch.randn(2, 4, 3, 5, dtype=torch.float64)
        masks = torch.rand(2, 2 * 9, 6, 10, dtype=torch.float64)

        def definition(features, masks):
            padded = torch.nn.functional.pad(features, (1, 1, 1, 1))
            pixels = []
            for c, y, x in itertools.product(range(4), range(6), range(10)):
                kernel = masks[:, 9 * (c // 2):9 * (c // 2) + 9, y, x].view(2, 3, 3)
                pixels.append((kernel * padded[:, c, y // 2:y // 2 + 3, x // 2:x // 2 + 3]).sum((1, 2)))
            return torch.stack(pixels, 1).view(2, 4, 6, 10)

        if operator == 'carafe':
            assert_same(lambda f, m: ops.carafe(f, m, 3, 2, 2), definition, features, masks)
        else:
            # mmcv asserts that gradients of this one are on a GPU; the operator itself is at hand.
            output = torch.zeros(2, 4, 6, 10, dtype=torch.float64)
            extension.carafe_naive_forward(features, masks, output, kernel_size=3, group_size=2, scale_factor=2)
            torch.testing.assert_close(output, definition(features, masks))

    def test_masked_conv(self):
        torch.manual_seed(5)
        conv = ops.MaskedConv2d(3, 4, (3, 1), padding=(1, 0)).double()
        x = torch.randn(1, 3, 5, 6, dtype=torch.float64)
        mask = torch.rand(1, 5, 6) > 0.6
        expected = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=(1, 0)) * mask
        torch.testing.assert_close(conv(x, mask), expected)

    def test_maxima_of_roi_align_are_refused(self):
        with pytest.raises(extension.MissingOperator, match="pool_mode='max'"):
            ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0, 0, 0, 3.0, 3.0]]), 2, 1.0, 0, 'max')
