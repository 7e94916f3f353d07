"""Curves of parameters against kernel size, compared with networks that really have these kernels."""

import copy
import csv

import pytest
from mmengine.config import Config
from torch import nn

from pelk_mm.analysis import build_model
from pelk_mm.analysis.kernel_scaling import draw_scaling, scale_kernels, taps_per_channel
from pelk_mm.layers import PeripheralConv2d

TOOL = 'analysis_tools/kernel_scaling.py'


@pytest.fixture(scope='module')
def convnext():
    return build_model(Config.fromstring("_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'", '.py'))


def replaced(model, make):
    """The model's parameters after every depthwise convolution were replaced by ``make(channels)``."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.groups == child.in_channels:
                setattr(module, name, make(child.in_channels))
    return sum(parameter.numel() for parameter in model.parameters())


def test_counts_are_those_of_replaced_networks(convnext):
    small, large, largest = scale_kernels(convnext, (7, 51, 151))
    assert small['dense'] == sum(parameter.numel() for parameter in convnext.parameters()) == 28589128
    assert large['peripheral'] == replaced(convnext, lambda channels: PeripheralConv2d(channels, 51))
    assert largest['dense'] == replaced(convnext, lambda channels: nn.Conv2d(channels, channels, 151, groups=channels))
    assert large['stripe'] == replaced(convnext, lambda channels: nn.ModuleList([
        nn.Conv2d(channels, channels, (51, 5), groups=channels),
        nn.Conv2d(channels, channels, (5, 51), groups=channels, bias=False)]))  # yapf: disable
    # 6624 depthwise channels: 3 * 96 + 3 * 192 + 9 * 384 + 3 * 768.
    assert largest['dense'] - small['dense'] == 6624 * (151**2 - 49)
    assert largest['peripheral'] - small['peripheral'] == 6624 * (17**2 - 7**2)
    # Peripheral kernels of 151 x 151 cost 6 % of a ConvNeXt-T, dense ones more than five times it.
    assert largest['peripheral'] / small['dense'] == pytest.approx(1.056, abs=0.001)
    assert largest['dense'] / small['dense'] == pytest.approx(6.27, abs=0.01)


@pytest.mark.parametrize(('size', 'center', 'cells'), [(51, 5, 13), (101, 7, 17), (31, 5, 11), (13, 5, 9)])
def test_taps_of_one_channel(size, center, cells):
    assert taps_per_channel(size, center, 3) == dict(dense=size**2, stripe=6 * size, peripheral=cells**2)


def test_curves(convnext):
    rows = scale_kernels(convnext, (7, 9, 11), center=3)
    one, whole = draw_scaling(rows, 'a net', center=3).axes
    assert [list(line.get_ydata()) for line in one.lines] == [[49, 81, 121], [70, 90, 110], [25, 49, 49]]
    assert list(whole.lines[2].get_ydata()) == [row['peripheral'] / 1e6 for row in rows]
    assert 'a net' in whole.get_ylabel()


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(kernel_sizes=[8]), 'kernel_size must be a positive odd number, got 8'),
    (dict(kernel_sizes=[7], center=9), 'center must not exceed kernel_size'),
    (dict(kernel_sizes=[7], stripe_width=4), 'stripe_width must be odd and at most kernel_size, 7, got 4'),
    (dict(kernel_sizes=[7], stripe_width=9), 'stripe_width must be odd and at most kernel_size, 7, got 9'),
])
def test_wrong_sizes_and_nothing_to_replace(convnext, arguments, message):
    with pytest.raises(ValueError, match=message):
        scale_kernels(convnext, **arguments)
    with pytest.raises(ValueError, match='Linear has no depthwise convolution'):
        scale_kernels(nn.Linear(2, 2), [7])


def test_tool(tmp_path, run_tool):
    config, out = tmp_path / 'net.py', tmp_path / 'out'
    config.write_text('default_scope = "mmpretrain"\nmodel = dict(type="ImageClassifier", backbone=dict('
                      'type="ConvNeXt", arch=dict(depths=[1], channels=[8]), out_indices=0))\n')
    code, printed = run_tool(TOOL, config, '--kernels', 7, 15, 8, '--center', 3, '--stripe-width', 3, '--out', out)
    assert code == 0, printed
    with (out / 'kernel_scaling.csv').open() as file:
        small, large = csv.DictReader(file)
    assert (small['kernel_size'], large['kernel_size']) == ('7', '15')
    assert int(large['dense']) - int(small['dense']) == 8 * (15**2 - 49)
    assert int(large['stripe']) - int(small['stripe']) == 8 * 6 * 8
    assert (out / 'kernel_scaling.png').exists()
    assert [line.split()[0] for line in printed.splitlines()[-4:]] == ['K', '7', '15', 'written:']
    with pytest.raises(FileExistsError, match=r'kernel_scaling\.csv exists and is not overwritten'):
        run_tool(TOOL, config, '--out', out)
