"""The environment doctor: every planted fault is found, and its cure named."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pelk_mm.doctors import environment, probes
from pelk_mm.doctors.environment import examine_environment, installed_versions, judge, run_probes
from pelk_mm.doctors.finding import Finding, has_fault, to_text

GOOD = {
    'torch': '2.11.0',
    'torchvision': '0.26.0',
    'setuptools': '81.0.0',
    'numpy': '2.2.6',
    'triton': '3.6.0',
    'onedl-mmcv': '2.3.6',
    'onedl-mmengine': '0.10.12',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmpretrain': '1.3.6'
}
NO_GPU = dict(built_for='13.0', names=[], capabilities=[], architectures=[], driver=False, threads=2, hidden=False)
GPU = dict(NO_GPU, names=['NVIDIA A100'], capabilities=[[8, 0]], architectures=['sm_75', 'sm_80'], driver=True)


def without(package, pattern, folder):
    """A copy of an installed package, by links, that lacks the files of a pattern."""
    source = Path(find_spec(package).origin).parent
    (folder / package).mkdir(parents=True)
    for file in source.iterdir():
        if not file.match(pattern):
            (folder / package / file.name).symlink_to(file)


def faults(findings):
    return [finding for finding in findings if finding.level == 'fault']


def test_ops_missing_and_torchvision_of_another_torch(tmp_path, monkeypatch):
    without('mmcv', '_ext.*', tmp_path)
    without('torchvision', '_C.*', tmp_path)
    info = tmp_path / 'torchvision-0.25.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: torchvision\nVersion: 0.25.0\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    found = faults(examine_environment(['torch', 'torchvision', 'mmcv.ops']))
    assert [finding.subject for finding in found] == ['torchvision', 'mmcv.ops', 'torchvision']
    torch = installed_versions()['torch']
    assert 'operator torchvision::nms does not exist' in found[0].text
    assert f'0.25.0 is not for torch {torch}' in found[2].text
    assert found[0].cure == found[2].cure == f'pip install "torchvision==0.26.*"  (for torch {torch})'
    assert "No module named 'mmcv._ext'" in found[1].text
    assert 'tools/setup_env.sh' in found[1].cure
    assert 'MMCV_WITH_OPS=1 pip install --no-build-isolation' in found[1].cure


def test_a_crash_is_told_and_the_rest_still_tried(tmp_path, monkeypatch):
    (tmp_path / 'crashing.py').write_text('import os\nos.abort()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_probes(['json', 'crashing', 'email', 'no_such_package']) == dict(
        json=dict(version='2.0.9'),
        crashing=dict(error='the Python process crashed'),
        email=dict(version=''),
        no_such_package=dict(error="ModuleNotFoundError: No module named 'no_such_package'"))


@pytest.mark.parametrize(('versions', 'text', 'cure'), [
    ({
        'torch': '2.3.1'
    }, '2.4 or later is needed', 'requirements/torch.txt'),
    ({
        'torchvision': '0.27.0'
    }, '0.27.0 is not for torch 2.11.0', 'pip install "torchvision==0.26.*"'),
    ({
        'mmcv': '2.1.0'
    }, 'onedl-mmcv and mmcv are both installed', 'pip uninstall -y onedl-mmcv mmcv'),
    ({
        'mmcv-lite': '2.1.0'
    }, 'mmcv-lite brings the module mmcv too', 'pip uninstall -y mmcv-lite'),
    ({
        'onedl-mmdetection': None,
        'mmdet': '3.3.0'
    }, 'packages of both stacks are mixed', 'VENV=.venv-new'),
    ({
        'onedl-mmengine': None,
        'mmengine': '0.10.7',
        'setuptools': '82.0.0'
    }, '82.0.0 dropped pkg_resources', 'pip install setuptools==81.0.0'),
])
def test_bad_combinations(versions, text, cure):
    versions = {name: version for name, version in {**GOOD, **versions}.items() if version}
    found = [finding for finding in faults(judge(versions, {}, (3, 11))) if text in finding.text]
    assert len(found) == 1
    assert cure in found[0].cure
    assert text not in to_text(judge(GOOD, {}, (3, 11)))


@pytest.mark.parametrize(('error', 'cure'), [
    ("ModuleNotFoundError: No module named 'mmcv._ext'", '--no-binary onedl-mmcv onedl-mmcv==2.3.6'),
    ('ImportError: /x/mmcv/_ext.cpython-311.so: undefined symbol: _ZN3c10', 'compiled with another PyTorch'),
    ('RuntimeError: operator torchvision::nms does not exist', 'pip install "torchvision==0.26.*"'),
    ("ModuleNotFoundError: No module named 'pkg_resources'", 'setuptools==81.0.0'),
    ('ImportError: libGL.so.1: cannot open shared object file', 'opencv-python-headless'),
    ('AssertionError: MMCV==2.3.0 is used but incompatible', 'pip install -r requirements/onedl.txt'),
    ("ModuleNotFoundError: No module named 'ftfy'", 'pip install ftfy'),
    ("ModuleNotFoundError: No module named 'mmdet'", 'source .venv/bin/activate'),
    ('the Python process crashed', 'rm -r .venv'),
])
def test_cures_of_failed_imports(error, cure):
    finding, = faults(judge(GOOD, {'part': dict(error=error)}, (3, 11)))
    assert finding.subject == 'part'
    assert finding.text == error
    assert cure in finding.cure


def test_cures_name_the_pinned_versions(root):
    build = (root / 'requirements' / 'build.txt').read_text()
    constraints = (root / 'requirements' / 'constraints.txt').read_text()
    pins = [word for _, cure in environment.CURES for word in cure.replace(',', ' ').split() if '==' in word]
    assert pins == ['setuptools==81.0.0', 'numpy==2.2.6']
    assert all(pin in build + constraints for pin in pins)


@pytest.mark.parametrize(('devices', 'ops', 'level', 'text'), [
    (NO_GPU, {}, 'ok', 'no GPU; 2 CPU threads'),
    (GPU, dict(cuda='13.0'), 'ok', '13.0, NVIDIA A100'),
    (GPU, dict(cuda='not available'), 'fault', 'detection fails on the GPU'),
    (dict(GPU, capabilities=[[8, 6]]), {}, 'ok', '13.0, NVIDIA A100'),
    (dict(GPU, capabilities=[[7, 0]]), {}, 'fault', 'no kernels for NVIDIA A100 (sm_70)'),
    (dict(GPU, capabilities=[[9, 0]]), {}, 'fault', 'no kernels for NVIDIA A100 (sm_90)'),
    (dict(NO_GPU, driver=True), {}, 'fault', 'PyTorch for CUDA 13.0 sees no GPU'),
    (dict(NO_GPU, driver=True, hidden=True), {}, 'ok', 'hidden by CUDA_VISIBLE_DEVICES'),
    (dict(NO_GPU, driver=True, built_for=None), {}, 'fault', 'built for the CPU alone'),
])
def test_devices(devices, ops, level, text):
    results = {'devices': devices, 'mmcv.ops': dict(ops, version='')}
    found = [finding for finding in judge(GOOD, results, (3, 11)) if text in finding.text]
    assert [finding.level for finding in found] == [level]


def test_builds_for_different_cuda():
    results = dict(torch=dict(version='2.11.0+cu130'), torchvision=dict(version='0.26.0+cpu'))
    finding, = faults(judge(GOOD, results, (3, 11)))
    assert 'another CUDA' in finding.text


def test_python_and_compiler(monkeypatch):
    assert [finding.level for finding in judge(GOOD, {}, (3, 9))][0] == 'fault'
    assert [finding.level for finding in judge(GOOD, {}, (3, 12))][0] == 'note'
    monkeypatch.setenv('CXX', '/nowhere/c++')
    assert any('native CPU backend cannot be built' in finding.text for finding in judge(GOOD, {}, (3, 11)))


def test_findings_to_read():
    text = to_text([Finding('ok', 'a', 'fine'), Finding('fault', 'b', 'word ' * 30, 'do this\nthen that')])
    lines = text.splitlines()
    assert lines[0] == 'ok    a               fine'
    assert lines[1].startswith('FAULT b               word')
    assert lines[-2:] == ['      cure: do this', '            then that']
    assert max(map(len, lines)) <= 110


def test_the_doctor_itself_loads_nothing_that_could_be_broken():
    code = 'import sys, pelk_mm.doctors.environment; sys.exit("torch" in sys.modules or "mmengine" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_tool_on_this_environment(root):
    """What runs the tests is sound; of a GPU it may have, mmcv's ops may know nothing."""
    result = subprocess.run([sys.executable, root / 'tools/misc/check_env.py'], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    subjects = {line[6:22].strip(): line[:6].strip() for line in lines if line[:6].strip()}
    assert {
        name: subjects[name]
        for name in probes.PACKAGES if name != 'mmcv.ops'
    } == {
        name: 'ok'
        for name in probes.PACKAGES if name != 'mmcv.ops'
    }
    assert len(lines) <= 40
    assert 'reference' in next(line for line in lines if 'op on cpu' in line)
    assert result.returncode == any(level == 'FAULT' for level in subjects.values())


def test_the_tool_exits_with_1(run_tool, monkeypatch):
    broken = dict(mmdet=dict(error="ModuleNotFoundError: No module named 'mmdet'"))
    monkeypatch.setattr(environment, 'run_probes', lambda parts: broken)
    code, printed = run_tool('misc/check_env.py')
    assert code == 1
    assert 'FAULT mmdet' in printed
    assert has_fault(judge(GOOD, broken, (3, 11)))
