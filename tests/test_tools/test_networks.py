"""The benchmark of complete networks: what it counts, from the command to the report, and goals from numbers."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch

from pelk_mm.analysis.mac_counter import MacCounter
from pelk_mm.testing.network_report import draw, to_markdown
from pelk_mm.testing.networks import NETWORKS, build_on_meta, count_multiply_adds, without_mixers

# Of the papers, in G: PeLK's Table 4 with RepLKNet, the README of MetaFormer baselines, InceptionNeXt's Table 4.
PUBLISHED = {'ConvNeXt-T': 4.5, 'Swin-T': 4.5, 'CAFormer-S18': 4.1, 'InceptionNeXt-T': 4.2, 'RepLKNet-31B': 15.3}


@pytest.fixture
def tool(load_tool):
    return load_tool('benchmarks/networks.py')


@pytest.mark.parametrize('name', NETWORKS)
def test_multiply_adds(name):
    """Those of the papers; and those of the mixers end when the mixers are taken out."""
    network = NETWORKS[name]
    if network.missing:
        pytest.skip(network.missing)
    count = count_multiply_adds(network, (224, 224))
    if name in PUBLISHED:
        assert count['dense'] / 1e9 == pytest.approx(PUBLISHED[name], abs=0.06)
        assert count['executed'] == count['dense']
    elif name != 'SLaK-T':
        assert count['executed'] < 0.9 * count['dense']
    model = without_mixers(build_on_meta(network, (224, 224)), network)
    counter = MacCounter(model, 'auto')
    with counter.count():
        model(torch.empty(1, 3, 224, 224, device='meta'))
    assert sum(counter.macs.values()) == count['executed'] - count['mixers'] < count['executed']


def test_width_one_has_the_cost_of_convnext():
    executed = {name: count_multiply_adds(NETWORKS[name], (224, 224))['executed'] for name in ('PeLK-T', 'PeLK-T-w1')}
    assert executed['PeLK-T'] / executed['PeLK-T-w1'] == pytest.approx(1.67, abs=0.03)
    assert executed['PeLK-T-w1'] / 4.46e9 == pytest.approx(1.0, abs=0.06)


def test_from_the_command_to_the_report(tool, tmp_path, monkeypatch):
    """Three networks, one round, in this process; started again, nothing is measured."""
    file = tmp_path / 'cpu.json'
    options = ['--device', 'cpu', '--tiny', '--json', str(file)]
    options += ['--models', 'PeLK-T', 'SLaK-T', 'small-101-w1', '--backends', 'box_sums']
    monkeypatch.setattr(sys, 'argv', ['networks.py', *options])
    tool.main()
    results = json.loads(file.read_text())['results']
    assert [label for label, result in results.items() if 'failed' in result] == []
    assert list(results) == [
        'models', 'multiply-adds, 64x64', 'memory formats, inference, fp32', 'inference, fp32, 2x64x64, eager',
        'memory formats, training, fp32', 'training, fp32, 2x64x64, eager', 'mixers, fp32']
    for use in ('inference', 'training'):
        result = results[f'{use}, fp32, 2x64x64, eager']
        seconds = results[f'memory formats, {use}, fp32']['seconds']
        assert result['macs_per_second'] > 0
        for name, measured in result['networks'].items():
            assert measured['images_per_second'] == 2 / measured['median']
            assert measured['memory_format'] == min(seconds[name], key=seconds[name].get)
    mixers = results['mixers, fp32']['mixers']
    assert set(mixers) == {'PeLK-T', 'PeLK-T, no mixers', 'PeLK-T, 7x7 kernels', 'PeLK-T, box_sums', 'SLaK-T',
                           'SLaK-T, no mixers', 'small-101-w1', 'small-101-w1, no mixers', 'small-101-w1, box_sums'}
    assert mixers['SLaK-T']['share'] == 1 - mixers['SLaK-T, no mixers']['median'] / mixers['SLaK-T']['median']
    assert '| SLaK-T | 82.5 |' in file.with_suffix('.md').read_text()
    assert not find_spec('matplotlib') or file.with_suffix('.png').stat().st_size > 1000
    for name in ('formats', 'in_turn', 'mixers', 'counts'):
        monkeypatch.setattr(tool, name, None)
    tool.main()
    assert json.loads(file.read_text())['results'] == results
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--models', 'SLaK-T'])
    with pytest.raises(SystemExit, match='is of the models PeLK-T, SLaK-T, small-101-w1: give another file'):
        tool.main()
    # What would take too long is left out, and says so.
    monkeypatch.undo()
    monkeypatch.setattr(sys, 'argv', ['networks.py', *options, '--call-limit', '0'])
    args = tool.parse_args()
    found = dict(shape=[2, 64, 64], seconds={'SLaK-T': dict(planes=3.0, channels_last=2.0)})
    args.rounds = dict(max_rounds=1)
    left_out = tool.in_turn('inference', 'fp32', (4, 128, 64), 'eager', ['SLaK-T'], found, args)
    assert left_out['networks'] == {'SLaK-T': dict(reason='left out: a call takes about 8 s')}


def measured(ms, rounds=9, **more):
    return dict(median=ms / 1e3, spread=0.02, rounds=rounds, peak_memory=2**20, **more)


def test_goals_and_shares_come_from_the_numbers():
    common = dict(use='inference', dtype='fp32', shape=[1, 224, 224], mode='eager', subset=False, macs_per_second=1e11)
    results = {
        'multiply-adds, 224x224': dict(size=[224, 224], counts={
            'PeLK-T-w1': dict(dense=9e9, executed=4e9, mixers=1e9, parameters=27e6)}),
        'inference, fp32, 1x224x224, eager': dict(common, networks={
            'PeLK-T-w1': measured(80), 'ConvNeXt-T': measured(79),
            'RepLKNet-31B': dict(reason='left out: a call takes about 99 s')}),
        'inference, fp32, 1x224x224, eager, PeLK-T-w1, ConvNeXt-T': dict(common, subset=True, networks={
            'PeLK-T-w1': measured(80, 30), 'ConvNeXt-T': measured(84, 30)}),
        'training, fp32, 4x224x224, eager': dict(common, use='training', shape=[4, 224, 224], networks={
            'PeLK-T-w1': measured(960, 3), 'ConvNeXt-T': measured(900, 1)}),
        'mixers, fp32': dict(failed='RuntimeError: no')}
    report = dict(environment=dict(device='cpu', device_name='A CPU', threads=2, torch='2.8', commit='abc'),
                  results=results)
    lines = to_markdown(report).splitlines()
    # The two by themselves decide, where they were timed so.
    assert '| PeLK-T-w1 / ConvNeXt-T | inference | fp32 | 1x224x224 | 1.050 | 1 | met | 30 | 2.0%, 2.0% |' in lines
    assert ('| PeLK-T-w1 / ConvNeXt-T | training | fp32 | 4x224x224 | 0.938 | 1 | **not met** | 1 | 2.0%, 2.0% |'
            ) in lines
    assert '| PeLK-T-w1 | - | 27.0 | 4.00 | 25.0% | 80 |' in lines
    assert '| ConvNeXt-T | 82.1 | - | - | - | 79 |' in lines
    assert '| PeLK-T-w1 | 960 | 1 |' in lines
    # 4 G in 80 ms are half of 100 G a second; a step is three times four images in 960 ms.
    assert '| PeLK-T-w1 | 50% | 50% |' in lines
    assert 'Medians of 3 to 3 rounds, interquartile range at most 2.0%; 1 of 2 timed once.' in lines
    assert '- RepLKNet-31B: left out: a call takes about 99 s (inference, fp32, 1x224x224, eager)' in lines
    pytest.importorskip('matplotlib')
    figure = draw(report)
    assert [axis.get_xlabel() for axis in figure.axes] == ['ms, inference, 1x224x224, fp32',
                                                            'ms, training, 4x224x224, fp32']
    drawn = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert drawn['ConvNeXt-T'] == (79, 82.1)
    assert drawn['PeLK-T-w1'][1] < 81.3
