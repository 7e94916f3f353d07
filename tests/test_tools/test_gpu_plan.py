"""The measuring plan for GPUs: its steps run without OpenMMLab, and lose nothing when they are interrupted."""

import json
import subprocess
import sys

import pytest
import torch

from pelk_mm.testing.measurements import Measurements

STEPS = ('correctness', 'operator', 'networks', 'profile')
# On a machine that is rented for half an hour only torch and timm are installed.
RUN_STEPS = """
import runpy, sys
for name in ('mmcv', 'mmengine', 'mmpretrain', 'mmseg', 'mmdet', 'matplotlib', 'rich', 'scipy', 'tqdm'):
    sys.modules[name] = None
folder, device, *steps = sys.argv[1:]
for step in steps:
    sys.argv = [step, '--tiny', '--device', device, '--json', f'{folder}/{step}.json']
    name = 'networks' if step == 'networks' else f'gpu_{step}'
    runpy.run_path(f'tools/benchmarks/{name}.py', run_name='__main__')
"""


def test_every_step_runs_with_torch_only(root, tmp_path):
    command = [sys.executable, '-c', RUN_STEPS, str(tmp_path), 'cpu', *STEPS]
    subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    reports = {step: json.loads((tmp_path / f'{step}.json').read_text()) for step in STEPS}
    failed = [name for report in reports.values() for name, result in report['results'].items() if 'failed' in result]
    assert failed == []
    correctness, operator, networks, profile = (report['results'] for report in reports.values())
    assert [name for name, result in correctness.items() if result.get('wrong')] == []
    for group in ('ours', 'others'):
        forward = operator[f'2x3x9x9, K 13, fp32, {group}, forward']
        assert forward.pop('copy')['copies'] == 1
        assert len(forward) > 3
        assert all(value['error'] < 2e-6 for value in forward.values())
    for use in ('inference', 'training'):
        measured = networks[f'{use}, fp32, 2x64x64, eager']['networks']
        assert {'PeLK-T', 'PeLK-T-101', 'PeLK-T-w1', 'grown ConvNeXt-T-51', 'SLaK-T'} <= set(measured)
        assert all(result['images_per_second'] > 0 for result in measured.values())
    assert '| SLaK-T | 82.5 |' in (tmp_path / 'networks.md').read_text()
    assert profile['training, PeLK-T-w1, fp32']['total'] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason='would measure')
def test_without_a_gpu_every_step_says_so(root, tmp_path):
    result = subprocess.run(['bash', 'tools/benchmarks/gpu.sh', str(tmp_path), 'networks'], cwd=root,
                            env=dict(PYTHON=sys.executable, PATH='/usr/bin:/bin'), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ['== networks', 'not measured: no CUDA device']
    assert list(tmp_path.iterdir()) == []


def test_measurements_go_on_where_they_stopped(tmp_path):
    file, lines, calls = tmp_path / 'results' / 'step.json', [], []

    def measure(name, error=None):
        calls.append(name)
        if error:
            raise error
        return dict(seconds=1.5)

    first = Measurements(file, 'cpu', 60, lines.append)
    assert first.run_once('a', measure, 'a') == dict(seconds=1.5)
    assert first.run_once('b', measure, 'b', ValueError('no kernel')) == dict(failed='ValueError: no kernel')
    # As a process that is killed meanwhile leaves it.
    with pytest.raises(KeyboardInterrupt):
        first.run_once('c', measure, 'c', KeyboardInterrupt())
    assert first.run_once('long', measure, 'long', needs=61) is None
    second = Measurements(file, 'cpu', 60, lines.append)
    assert second.run_once('a', measure, 'a') == dict(seconds=1.5)
    assert second.run_once('c', measure, 'c') == dict(failed='it did not end: the process was killed')
    assert second.run_once('long', measure, 'long', needs=59) == dict(seconds=1.5)
    assert calls == ['a', 'b', 'c', 'long']
    second.finish()
    assert lines[-1].endswith('4 results in ' + str(file) + ', 2 failed: b, c')
    late = Measurements(file, 'cpu', -1, lines.append)
    assert late.run_once('d', measure, 'd') is None
    late.finish()
    assert lines[-1] == '1 are left: run the same command again'


@pytest.mark.parametrize('content', ['', '[]', '{"environment": {"device_name": "another"}, "results": {"a": 1}}'])
def test_results_of_another_device_are_kept_apart(tmp_path, content):
    file = tmp_path / 'step.json'
    file.write_text(content)
    measurements = Measurements(file, 'cpu', 60, lambda line: None)
    assert measurements.run_once('a', lambda: 2) == 2
    assert (tmp_path / 'step.json.old').read_text() == content
    assert json.loads(file.read_text())['results'] == dict(a=2)
