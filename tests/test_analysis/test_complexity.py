"""Parameters and multiply-adds by hand and as published, what is executed beside them, and get_flops.py."""

import json

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import ConfigDict
from torch import nn

from pelk_mm.analysis import build_model, count_complexity, default_shape, peripheral_conv2d_flops
from pelk_mm.analysis.breakdown import draw_breakdown
from pelk_mm.engine.launch import read_config
from pelk_mm.layers import PeripheralConv2d
from pelk_mm.models import PeLK, SLaK
from pelk_mm.testing.tiny_models import tiny_config

from ..helpers.config_tree import ROOT, load

TINY = 'configs/imagenet/pelk-tiny_32xb128_in1k.py'
UPERNET = 'configs/ade20k/pelk-tiny_upernet_8xb2-160k_ade20k-512x512.py'
CASCADE = 'configs/baselines/coco/cascade-mask-rcnn_convnext-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'

# Models of the toolboxes that no table of the paper has, the shape, the published parameters (M) and multiply-adds (G).
UPSTREAM = [
    ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (224, 224), 25.6, 4.1),
    ('mmpretrain::repvgg/repvgg-A0_8xb32_in1k.py', (224, 224), 8.31, 1.36),
    ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', (800, 1280), 44, 260),
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', (800, 1280), 38, 239),
]


@pytest.mark.parametrize(('config', 'shape', 'mparams', 'gmacs'), UPSTREAM, ids=[case[0] for case in UPSTREAM])
def test_published_counts_of_other_models(config, shape, mparams, gmacs):
    cfg = read_config(config)
    assert default_shape(cfg) == shape
    counts = count_complexity(build_model(cfg), shape).to_dict()
    assert counts['gmacs'] == pytest.approx(gmacs, rel=0.015)
    assert counts['mparams'] == pytest.approx(mparams, rel=0.015)


def test_pelk_tiny_by_hand():
    depths, widths, kernels, cells = (3, 3, 9, 3), (124, 249, 499, 998), (51, 49, 47, 13), (13, 13, 13, 9)
    convolved, sides = (46, 93, 187, 374), (56, 28, 14, 7)
    stages = list(zip(depths, widths, kernels, cells, convolved, sides))
    large = sum(d * g * k * k * s * s for d, _, k, _, g, s in stages)
    pointwise = sum(d * 8 * c * c * s * s for d, c, _, _, _, s in stages)
    previous = (3, *widths)
    downsampling = sum(
        a * b * patch**2 * s * s for a, b, patch, s in zip(previous, widths, (4, 2, 2, 2), sides))
    embedding = sum(d * g * k * k for d, _, k, _, g, _ in stages)

    model = PeLK('tiny').to('meta')
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    result = count_complexity(model, (224, 224), density=0.5)
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == before
    parts = result.costs['backbone']
    assert {name: cost.macs
            for name, cost in parts.items() if cost.macs} == dict(
                large_kernel=0.5 * large,
                pointwise=0.5 * pointwise,
                downsampling=0.5 * downsampling,
                embedding=embedding)
    assert result.total.macs == 0.5 * (large + pointwise + downsampling) + embedding
    assert result.share('backbone', 'large_kernel') == pytest.approx(0.246, abs=0.005)

    assert parts['embedding'].params_stored == sum(g * k * k for _, _, k, _, g, _ in stages) == 819228
    assert parts['small_kernel'].params_stored == sum(d * g * 25 for d, _, _, _, g, _ in stages)
    assert parts['small_kernel'].params_counted == 0
    # theta, and the bias into which the norms fold.
    assert parts['large_kernel'].params_counted == sum(d * (0.5 * g * n * n + g) for d, _, _, n, g, _ in stages)
    assert result.total.params_stored == sum(parameter.numel() for parameter in model.parameters())
    counts = result.to_dict()
    assert counts['params_counted_with_embedding'] - counts['params_counted'] == 819228
    assert sum(part['macs'] for part in counts['parts']['backbone']['parts'].values()) == counts['macs']
    assert sum(part['share'] for part in counts['parts']['backbone']['parts'].values()) == pytest.approx(1)


def test_shares_of_the_backbone_in_figure_5():
    """Fig. 5(b) of PeLK-T with UperNet at 2048 x 512: shares of the backbone, beside those of the model."""
    model = build_model(load(UPERNET))
    result = count_complexity(model, (512, 2048), density=0.6)
    backbone = result.component('backbone').macs
    assert backbone / 1e9 == pytest.approx(121.7, abs=0.05)
    assert result.share('backbone') == pytest.approx(0.1255, abs=0.0001)
    # The paper: 25 % and 0.05 %.
    assert result.share('backbone', 'large_kernel', of='backbone') == pytest.approx(0.246, abs=0.0005)
    assert result.share('backbone', 'large_kernel') == pytest.approx(0.0309, abs=0.0001)
    # The constant of Eq. 3, and what one addition for each pixel of each channel would be.
    assert result.costs['backbone']['embedding'].macs == 4_936_182
    assert result.share('backbone', 'embedding', of='backbone') == pytest.approx(0.000041, abs=0.0000005)
    additions = sum(
        blocks * channels * pixels
        for blocks, channels, pixels in zip((3, 3, 9, 3), (124, 249, 499, 998), (65536, 16384, 4096, 1024)))
    assert additions / 1e6 == pytest.approx(58.1, abs=0.05)
    assert additions / backbone == pytest.approx(0.00048, abs=0.000005)

    parts = result.to_dict()['parts']['backbone']['parts']
    for key in ('share_of_backbone', 'executed_share_of_backbone'):
        assert sum(part[key] for part in parts.values()) == pytest.approx(1)
    for part in parts.values():
        assert part['share'] == pytest.approx(part['share_of_backbone'] * result.share('backbone'))
        assert part['executed_share'] == pytest.approx(
            part['executed_share_of_backbone'] * result.executed_share('backbone'))

    lines = {line[:52].strip(): line[52:].split() for line in result.to_table().splitlines()}
    # Stored, counted, GMACs, two shares, executed, two shares; the head has no share of the backbone.
    assert lines['positional embedding'][2:5] == ['0.00', '0.000509', '0.00405']
    assert lines['large kernels (peripheral, or depthwise over 7x7)'][2:5] == ['29.95', '3.09', '24.6']
    assert lines['backbone'][2:5] == ['121.74', '12.6', '100']
    assert lines['decode_head'][2:4] == ['848.14', '87.4']
    assert len(lines['decode_head']) == len(lines['total']) == len(lines['backbone']) - 2 == 6


def test_small_kernels_count_where_they_stay():
    model, merged = (
        PeLK('atto', kernel_sizes=(13, 13, 13, 13), center=center, width_factor=1.0).to('meta') for center in (3, 5))
    small = sum(d * g * 25 * s * s for d, g, s in zip((1, 1, 2, 1), (9, 18, 36, 72), (16, 8, 4, 2)))
    for net, deploy, expected in ((model, True, small), (merged, True, 0), (merged, False, small)):
        parts = count_complexity(net, (64, 64), deploy=deploy).costs['backbone']
        assert parts['small_kernel'].macs == expected
        assert parts['small_kernel'].params_stored > 0


class Attention(nn.Module):

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.depthwise = nn.Conv2d(8, 8, (3, 9), padding=(1, 4), groups=8)
        self.full = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.peripheral = PeripheralConv2d(8, 5, center=1)
        self.norm = nn.BatchNorm2d(8)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        x = self.norm(self.peripheral(self.grouped(self.full(self.depthwise(self.patch(x))))))
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, dim=-1)
        return self.attend(q, k, (q @ k.mT) @ v)[0] * self.scale


@pytest.mark.parametrize(('device', 'backend'), [('meta', 'auto'), ('meta', 'reference'), ('cpu', 'reference')])
def test_parts_and_density_of_a_net_by_hand(device, backend, monkeypatch):
    monkeypatch.setenv('PELK_MM_BACKEND', backend)
    tokens = 4 * 6
    counts = count_complexity(Attention().to(device), (16, 24), density=0.25).costs['backbone']
    # The attention layer runs the products of activations, too, and projects its three inputs and its output.
    macs = dict(
        downsampling=0.25 * tokens * 8 * 3 * 16,
        large_kernel=0.25 * tokens * 8 * (27 + 25),
        convolution=0.25 * tokens * 8 * 8 * 9,
        pointwise=0.25 * tokens * (8 * 4 + 8 * 24 + 8 * 8 * 4),
        attention=2 * 2 * tokens * tokens * 8)
    assert {name: cost.macs for name, cost in counts.items() if cost.macs} == macs
    assert counts['norm'].params_counted == 16
    assert counts['other'].params_counted == 8
    assert counts['large_kernel'].params_counted == 0.25 * 8 * (27 + 9) + 16
    assert counts['pointwise'].params_counted == 0.25 * (8 * 4 + 8 * 24 + 8 * 8 * 4) + 8 + 24 + 8


def test_counting_leaves_no_hooks_and_no_gradients():
    model = Attention()
    count_complexity(model, (16, 16))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model(torch.rand(1, 3, 16, 16)).requires_grad


def test_mask_rois_of_mmdetection_2_and_3():
    model = build_model(load(CASCADE))
    few, many = (count_complexity(model, (800, 1280), num_mask_rois=number).total.macs for number in (100, 1000))
    # Four 3x3 convolutions on 14x14, a 2x2 transposed one to 28x28, and 80 classes; three heads.
    head = 4 * 196 * 256 * 256 * 9 + 784 * 256 * 256 + 784 * 256 * 80
    assert many - few == 900 * 3 * head
    assert many / 1e9 == pytest.approx(2170.8, rel=0.001)
    boxes = count_complexity(model, (800, 1280), num_rois=0, num_mask_rois=0).component('roi_head').macs
    assert boxes == 0


def test_heads_are_dense_except_of_classifiers():
    cfg = load(UPERNET)
    sparse, dense = (count_complexity(build_model(cfg), (64, 64), density=density) for density in (0.6, 1.0))
    assert sparse.component('decode_head') == dense.component('decode_head')
    embedding = dense.costs['backbone']['embedding'].macs
    assert sparse.component('backbone').macs == pytest.approx(0.6 * dense.component('backbone').macs + 0.4 * embedding)
    # Trained with, not run at test time.
    assert sparse.component('auxiliary_head').macs == 0 < sparse.component('auxiliary_head').params_counted
    head = count_complexity(build_model(load(TINY)), (64, 64), density=0.6).component('head')
    assert (head.macs, head.params_counted) == (0.6 * 998 * 1000, 0.6 * 998 * 1000 + 1000)


def test_default_shape():
    load, resize, crop = dict(type='Load'), dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=224)
    wide = dict(type='Resize', scale=(48, 32))
    cases = [(dict(test=[load, resize, crop, load], train=[wide]), (224, 224)), (dict(val=[load, wide]), (32, 48)),
             (dict(test=[load], train=[crop, load]), (224, 224))]
    for pipelines, shape in cases:
        loaders = {f'{name}_dataloader': dict(dataset=dict(pipeline=steps)) for name, steps in pipelines.items()}
        assert default_shape(ConfigDict(default_scope='mmpretrain', **loaders)) == shape
    with pytest.raises(ValueError, match='shape must be given'):
        default_shape(ConfigDict(test_dataloader=dict(dataset=dict(pipeline=[load]))))


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(shape=(224, )), r'shape must be two positive ints.*got \(224,\)'),
    (dict(shape=(0, 224)), 'shape must be two positive ints'),
    (dict(shape=(64, 64), density=0), r'density must be in \(0, 1\], got 0'),
    (dict(shape=(64, 64), density=1.5), r'density must be in \(0, 1\], got 1.5'),
    (dict(shape=(64, 64), num_rois=-1), 'num_rois must not be negative, got -1'),
    (dict(shape=(64, 64), num_mask_rois=-1), 'num_mask_rois must not be negative, got -1'),
    (dict(shape=(64, 64), backend='cuda'), "backend must be .*got 'cuda'"),
])
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        count_complexity(nn.Conv2d(3, 3, 1), **arguments)


def test_model_that_reads_values():

    class ReadsValues(nn.Conv2d):

        def forward(self, x):
            return super().forward(x)[..., :int(x.sum().item()) + 1]

    model = ReadsValues(3, 8, 1)
    assert count_complexity(model, (4, 4)).total.macs == 16 * 24
    with pytest.raises(RuntimeError, match='does not run on the meta device.*count it on the CPU'):
        count_complexity(model.to('meta'), (4, 4))


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.peripheral = PeripheralConv2d(3, grid=(2, 1))
        self.pointwise = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.pointwise(self.peripheral(self.peripheral(x)))


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_executed_operations_of_a_net_by_hand(device):
    result = count_complexity(Net().to(device), (4, 3), density=0.5, backend='box_sums')
    large, pointwise = (result.costs['backbone'][part] for part in ('large_kernel', 'pointwise'))
    # Three channels, run twice.
    assert large.macs == 0.5 * 6 * 25 * 12
    assert large.executed_macs == 6 * 9 * 12
    assert large.executed_additions == 6 * (1 + 3 + 2) * 12
    # Zeros are multiplied, too.
    assert (pointwise.macs, pointwise.executed) == (0.5 * 12 * 15, 12 * 15)
    assert result.total.executed == large.executed + pointwise.executed
    assert result.executed_share('backbone', 'large_kernel') == large.executed / result.total.executed


def test_shares_of_pelk_tiny():
    model = PeLK('tiny').to('meta')
    dense, fast = (count_complexity(model, (224, 224), density=0.6, backend=name) for name in ('reference', 'native'))
    # Figure 5: about a quarter. Executed by the fast backend it is less than a fiftieth.
    assert dense.executed_share('backbone', 'large_kernel') == pytest.approx(0.246, abs=0.005)
    assert fast.executed_share('backbone', 'large_kernel') == pytest.approx(0.0180, abs=0.0001)
    assert dense.total.executed == pytest.approx(dense.total.macs / 0.6, rel=0.001)


def test_embedding_is_executed_in_training_form_only():
    model = PeLK('atto', kernel_sizes=(13, 13, 13, 13), depths=(2, 1, 1, 1)).to('meta')
    training, deployed = (count_complexity(model, (32, 32), deploy=deploy).costs['backbone']['embedding']
                          for deploy in (False, True))
    # Five stages' blocks multiply sums over 9 x 9 cells; the sums are made once a stage, of rows, then of columns.
    widths = (11, 23, 46, 93)
    assert training.executed_macs == 81 * (sum(widths) + widths[0])
    assert training.executed_additions == sum(widths) * (13 * 13 + 9 * 13)
    assert deployed.executed == 0 < deployed.macs == training.macs


def test_without_peripheral_convolutions_the_dense_form_is_executed():
    total = count_complexity(SLaK('atto').to('meta'), (64, 64), density=0.5).total
    assert (total.executed_macs, total.executed_additions) == (2 * total.macs, 0)


def test_bars_are_the_costs():
    result = count_complexity(PeLK('atto').to('meta'), (64, 64), density=0.5)
    axis = draw_breakdown(result).axes[1]
    drawn = sorted(bar.get_width() for container in axis.containers for bar in container)
    costs = [cost for cost in result.costs['backbone'].values() if cost.macs or cost.executed]
    assert drawn == pytest.approx(sorted(value / 1e9 for cost in costs for value in (cost.macs, cost.executed)))
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        'stem and downsampling', 'large kernels', 'pointwise', 'positional embedding']  # yapf: disable


def test_bars_of_the_backbone_are_labelled_with_its_shares():
    result = count_complexity(build_model(load(UPERNET)), (64, 64), density=0.6)
    labels = [[float(text.get_text().partition(', ')[2].removesuffix(' %')) for text in axis.texts]
              for axis in draw_breakdown(result).axes]
    for axis_labels, components in zip(labels, (('backbone', 'decode_head'), ('backbone',))):
        for column in (axis_labels[:len(axis_labels) // 2], axis_labels[len(axis_labels) // 2:]):
            assert sum(column) == pytest.approx(100, abs=0.2), components
    large = labels[1][1]
    assert large == pytest.approx(100 * result.share('backbone', 'large_kernel', of='backbone'), rel=0.01)
    assert large > 5 * 100 * result.share('backbone', 'large_kernel')


def test_tool(tmp_path, run_tool):
    plot = tmp_path / 'new' / 'shares.png'
    command = ('analysis_tools/get_flops.py', ROOT / TINY, '--shape', 64, 96, '--density', 0.6, '--backend', 'native',
               '--cfg-options', 'model.head.num_classes=10')  # yapf: disable
    code, printed = run_tool(*command)
    assert code == 0, printed
    assert {'total', '  large kernels (peripheral, or depthwise over 7x7)'} <= {
        line[:52].rstrip() for line in printed.splitlines()}
    code, printed = run_tool(*command, '--json', '--plot', plot)
    assert code == 0, printed
    counts = json.loads(printed.splitlines()[-1])
    assert (counts['config'], counts['shape'], counts['density']) == (str(ROOT / TINY), [64, 96], 0.6)
    assert (counts['backend'], counts['parts']['head']['params_stored']) == ('native', 9990)
    assert all(isinstance(counts[key], int) for key in ('params_stored', 'params_counted', 'macs'))
    assert counts['macs'] == pytest.approx(sum(part['macs'] for part in counts['parts'].values()), abs=2)
    parts = counts['parts']['backbone']['parts']
    assert counts['executed_additions'] == parts['large_kernel']['executed_additions'] > 0
    assert counts['gops_executed'] * 1e9 == pytest.approx(counts['executed_macs'] + counts['executed_additions'])
    assert plot.stat().st_size > 10_000
    with pytest.raises(FileExistsError, match=r'shares\.png exists and is not overwritten'):
        run_tool(*command, '--plot', plot)


def test_analyzers_of_mmengine_count_the_operator():
    """By themselves they count it as 0, as upstream's get_flops.py does."""
    model = build_model(tiny_config('classification'), 'cpu')
    ours = count_complexity(model, (64, 64)).component('backbone').macs
    model.backbone.switch_to_deploy()
    operators = [
        FlopAnalyzer(model.backbone, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False)
        for _ in range(2)
    ]
    operators[1].set_op_handle('pelk_mm::peripheral_conv2d', peripheral_conv2d_flops)
    without, counted = (analyzer.by_operator() for analyzer in operators)
    # 3 x 3 of 16 x 16 pixels and so on: kernels of 11, 9, 9 and 5 on a share of the channels.
    layers = [layer for layer in model.backbone.modules() if isinstance(layer, PeripheralConv2d)]
    expected = sum(layer.channels * layer.grid.kernel_size**2 * side**2 for layer, side in zip(layers, (16, 8, 4, 2)))
    assert 'peripheral_conv2d' not in without
    assert counted['peripheral_conv2d'] == expected > 0
    assert counted['conv'] + counted['linear'] + expected == pytest.approx(ours, rel=0.05)


@pytest.mark.parametrize(('width_factor', 'expected'), [
    # Two layers of 4 * C * C a block: every one at width 1.0.
    (1.0, 8 * (3 * 56**2 * 96**2 + 3 * 28**2 * 192**2 + 9 * 14**2 * 384**2 + 3 * 7**2 * 768**2)),
    # 124, 249, 499 and 998 are no multiples of 16.
    (1.3, 0),
])
def test_zeros_that_a_gpu_can_skip(width_factor, expected):
    with torch.device('meta'):
        model = PeLK('tiny', width_factor=width_factor)
    complexity = count_complexity(model, (224, 224))
    assert complexity.macs_for_2_4 == expected
    assert f'2:4 in linear layers of {expected / 1e9:.2f} GMACs' in complexity.to_table()
    assert complexity.to_dict()['macs_for_2_4'] == expected
