"""Executed operations beside the dense form: counts, the table and the figure of get_flops.py."""

import json

import pytest
from mmengine.config import Config
from torch import nn

from pelk_mm.analysis import build_model, count_complexity
from pelk_mm.analysis.breakdown import draw_breakdown
from pelk_mm.layers import PeripheralConv2d
from pelk_mm.models import PeLK, SLaK

BY_HAND = dict(multiply_adds=9 * 12, additions=(1 + 3 + 2) * 12)


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.peripheral = PeripheralConv2d(3, grid=(2, 1))
        self.pointwise = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.pointwise(self.peripheral(self.peripheral(x)))


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_a_net_by_hand(device):
    result = count_complexity(Net().to(device), (4, 3), density=0.5, backend='box_sums')
    large, pointwise = (result.costs['backbone'][part] for part in ('large_kernel', 'pointwise'))
    # Three channels, run twice.
    assert large.macs == 0.5 * 6 * 25 * 12
    assert large.executed_macs == 6 * BY_HAND['multiply_adds']
    assert large.executed_additions == 6 * BY_HAND['additions']
    # Zeros are multiplied, too.
    assert (pointwise.macs, pointwise.executed) == (0.5 * 12 * 15, 12 * 15)
    assert result.total.executed == large.executed + pointwise.executed
    assert result.executed_share('backbone', 'large_kernel') == large.executed / result.total.executed


def test_shares_of_pelk_tiny():
    model = PeLK('tiny').to('meta')
    dense, fast = (count_complexity(model, (224, 224), density=0.6, backend=name) for name in ('reference', 'native'))
    # Figure 5: about a quarter. Executed by the fast backend it is a fortieth.
    for result in (dense, fast):
        assert result.share('backbone', 'large_kernel') == pytest.approx(0.246, abs=0.005)
    assert dense.executed_share('backbone', 'large_kernel') == pytest.approx(0.246, abs=0.005)
    assert fast.executed_share('backbone', 'large_kernel') == pytest.approx(0.0277, abs=0.0001)
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


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be .*got 'cuda'"):
        count_complexity(nn.Conv2d(3, 3, 1), (4, 3), backend='cuda')


def test_hooks_are_removed():
    model = Net()
    count_complexity(model, (4, 3))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bars_are_the_costs():
    result = count_complexity(PeLK('atto').to('meta'), (64, 64), density=0.5)
    axis = draw_breakdown(result).axes[1]
    drawn = sorted(bar.get_width() for container in axis.containers for bar in container)
    costs = [cost for cost in result.costs['backbone'].values() if cost.macs or cost.executed]
    assert drawn == pytest.approx(sorted(value / 1e9 for cost in costs for value in (cost.macs, cost.executed)))
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        'stem and downsampling', 'large kernels', 'pointwise', 'positional embedding']  # yapf: disable


def test_bars_of_the_backbone_are_labelled_with_its_shares(root):
    cfg = Config.fromfile(root / 'configs/ade20k/pelk-tiny_upernet_8xb2-160k_ade20k-512x512.py')
    result = count_complexity(build_model(cfg), (64, 64), density=0.6)
    labels = [[float(text.get_text().partition(', ')[2].removesuffix(' %')) for text in axis.texts]
              for axis in draw_breakdown(result).axes]
    for axis_labels, components in zip(labels, (('backbone', 'decode_head'), ('backbone',))):
        for column in (axis_labels[:len(axis_labels) // 2], axis_labels[len(axis_labels) // 2:]):
            assert sum(column) == pytest.approx(100, abs=0.2), components
    large = labels[1][1]
    assert large == pytest.approx(100 * result.share('backbone', 'large_kernel', of='backbone'), rel=0.01)
    assert large > 5 * 100 * result.share('backbone', 'large_kernel')


def test_tool_adds_to_its_numbers_and_draws(tmp_path, root, run_tool):
    plot = tmp_path / 'new' / 'shares.png'
    command = ('analysis_tools/get_flops.py', root / 'configs/imagenet/pelk-tiny_32xb128_in1k.py', '--shape', 64, 64,
               '--backend', 'native', '--json', '--plot', plot)  # yapf: disable
    code, printed = run_tool(*command)
    assert code == 0, printed
    counts = json.loads(printed.splitlines()[-1])
    parts = counts['parts']['backbone']['parts']
    assert counts['backend'] == 'native'
    assert counts['executed_additions'] == parts['large_kernel']['executed_additions'] > 0
    assert counts['gops_executed'] * 1e9 == pytest.approx(counts['executed_macs'] + counts['executed_additions'])
    assert sum(part['executed_share'] for part in parts.values()) == pytest.approx(
        counts['parts']['backbone']['executed_share'])
    assert plot.stat().st_size > 10_000
    with pytest.raises(FileExistsError, match=r'shares\.png exists and is not overwritten'):
        run_tool(*command)
