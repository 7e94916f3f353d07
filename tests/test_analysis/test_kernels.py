"""Kernels of models, stage by stage: what is found, its numbers, what is drawn, and the tool."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from pelk_mm.analysis.kernels import collect_kernels, draw_grid, draw_kernels, draw_sharing_grids
from pelk_mm.models import PeLK, SLaK
from pelk_mm.ops import SharingGrid
from pelk_mm.testing.tiny_models import tiny_config

ARCH = dict(depths=(1, 2), channels=(8, 16), kernel_sizes=(13, 9))


@pytest.fixture
def pelk():
    torch.manual_seed(0)
    return PeLK(ARCH, width_factor=1.0, center=3)


def test_kernels_of_pelk(pelk):
    first, second = collect_kernels(pelk)
    assert (first.name, second.name) == ('stages.0', 'stages.1')
    assert [layer.name for layer in second.layers] == [
        f'stages.1.blocks.{block}.mixer.mixer.convs.large' for block in (0, 1)]  # yapf: disable
    conv = pelk.stages[0].blocks[0].mixer.mixer.convs['large']
    np.testing.assert_array_equal(first.layers[0].kernel, conv.kernel().detach().numpy())
    np.testing.assert_array_equal(second.embedding, pelk.stages[1].position_embedding.weight.detach().numpy())
    kernels = np.concatenate([layer.kernel for layer in second.layers])
    assert kernels.shape == (12, 9, 9)
    np.testing.assert_allclose(second.magnitude(), np.sqrt((kernels.astype(np.float64)**2).mean(0)))
    pelk.eval()
    pelk.switch_to_deploy()
    assert [stage.embedding for stage in collect_kernels(pelk)] == [None, None]


def test_summary_by_hand(pelk):
    conv = pelk.stages[0].blocks[0].mixer.mixer.convs['large']
    cells = conv.grid.num_cells
    # Rings of cells hold 2, 1 and 0 from the border; cells of 3, 2, 1, 1 in 13 x 13.
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :, 0, :] = conv.weight[:, :, -1, :] = 2.0
    summary = collect_kernels(pelk)[0].summary()
    assert (summary['kernel_size'], summary['channels'], summary['half_grid']) == ([13, 13], 3, [3, 2, 1, 1])
    assert summary['parameters_per_channel'] == cells**2 == 49
    # Distances 0 ... 3 lie within; at 4 the first and last rows of taps begin, in which 2 of 4 sides are 2.
    assert summary['rms_by_distance'][:4] == [0, 0, 0, 0]
    for distance in (4, 5, 6):
        ring = 8 * distance
        inside = 2 * (2 * distance + 1) + 2 * 2 * (distance - 4)
        assert summary['rms_by_distance'][distance] == pytest.approx(np.sqrt(4 * inside / ring))
    assert len(summary['embedding_rms_by_distance']) == 7


def test_stripes_and_plain_depthwise_convolutions():
    found = collect_kernels(SLaK(dict(depths=(1, ), channels=(8, ), kernel_sizes=(11, )), out_indices=0))
    assert [stage.summary()['kernel_size'] for stage in found] == [[11, 5], [5, 11]]
    assert [stage.summary()['parameters_per_channel'] for stage in found] == [55, 55]
    assert all(stage.layers[0].grid is None and stage.embedding is None for stage in found)
    net = nn.Sequential(nn.Conv2d(4, 4, 7, groups=4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 9))
    same = PeLK(dict(depths=(1, ), channels=(8, ), kernel_sizes=(5, )), out_indices=0)
    assert [len(stage.layers) for stage in collect_kernels(same)] == [1]
    one, = collect_kernels(net)
    assert (one.name, one.layers[0].kernel.shape) == ('0', (4, 7, 7))
    assert len(collect_kernels(net, least_side=3)) == 2
    # For want of any that large, the ordinary ones, a kernel for each pair of channels.
    one, = collect_kernels(net, least_side=9)
    assert (one.name, one.layers[0].kernel.shape) == ('2', (32, 9, 9))
    np.testing.assert_array_equal(one.layers[0].kernel[5], net[2].weight[1, 1].detach())
    with pytest.raises(ValueError, match='Sequential has no convolution of 11 x 11 or more'):
        collect_kernels(net, least_side=11)


def test_kernels_are_drawn(pelk):
    stages = collect_kernels(pelk)
    figure = draw_kernels(stages, channels=2)
    assert len(figure.axes) == 2 * 6
    kernel = stages[0].layers[-1].kernel
    strongest = (kernel**2).sum((1, 2)).argmax()
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), kernel[strongest])
    assert figure.axes[0].get_title() == 'stages.0: 13 x 13'
    net = nn.Sequential(nn.Conv2d(1, 2, 5))
    net[0].weight.data[1] = 1
    plain = draw_kernels(collect_kernels(net), channels=2)
    # No embedding, no place for one.
    assert [axis.get_title() for axis in plain.axes] == [
        '0: 5 x 5', 'rms of all layers', 'last layer, kernel 1', 'last layer, kernel 0'
    ]  # yapf: disable


def test_grid_is_drawn_cell_by_cell():
    grid = SharingGrid.from_half((2, 1, 1))
    axis = draw_sharing_grids([grid, SharingGrid.from_half((2, 3))]).axes[0]
    assert axis.get_title() == '7 x 7 taps share 5 x 5 parameters (51.0 %)'
    edges = [segment[0, 0] for segment in axis.collections[0].get_segments()]
    assert edges == [-0.5, 1.5, 2.5, 3.5, 4.5, 6.5]
    shades = axis.images[0].get_array()
    # The centre of unit cells is one colour, the ring around it another.
    assert (shades[2:5, 2:5] == 2).all()
    assert (shades == 2).sum() == 9
    assert [text.get_text() for text in axis.texts] == ['2', '2']
    draw_grid(axis, grid)


def test_tool(tmp_path, run_tool):
    config, out = tmp_path / 'tiny.py', tmp_path / 'out'
    cfg = tiny_config('classification')
    cfg.model.backbone = dict(type='pelk_mm.PeLK', arch=ARCH)
    cfg.dump(str(config))
    command = ('analysis_tools/visualize_kernels.py', config, '--out', out, '--channels', 1)
    code, printed = run_tool(*command)
    assert code == 0, printed
    stages = json.loads((out / 'kernels.json').read_text())['stages']
    assert [stage['kernel_size'] for stage in stages] == [[13, 13], [9, 9]]
    assert 'stages.1: 9 x 9, 49 parameters a channel, 2 layers' in printed
    assert sorted(path.name for path in out.iterdir()) == ['grids.png', 'kernels.json', 'kernels.png']
    with pytest.raises(FileExistsError, match=r'kernels\.png exists and is not overwritten'):
        run_tool(*command)
