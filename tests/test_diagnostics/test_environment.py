"""Diagnosis of an environment: every planted error is found, and its fix named."""

import re
import subprocess
import sys

import pytest

from pelk_mm.diagnostics import environment, probes
from pelk_mm.diagnostics.environment import examine_environment, installed_versions, judge, run_probes
from pelk_mm.diagnostics.finding import Finding, has_error, to_text

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


def errors(findings):
    return [finding for finding in findings if finding.level == 'error']


def test_torchvision_of_another_torch(without_files, monkeypatch):
    folder = without_files('torchvision', '_C*')
    info = folder.parent / 'torchvision-0.22.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: torchvision\nVersion: 0.22.0\n')
    monkeypatch.syspath_prepend(folder.parent)
    found = errors(examine_environment(['torch', 'torchvision']))
    assert [finding.subject for finding in found] == ['torchvision', 'torchvision']
    torch = installed_versions()['torch']
    assert 'torchvision::nms' in found[0].text
    assert f'0.22.0 is not for torch {torch}' in found[1].text
    assert found[0].fix == found[1].fix
    assert re.fullmatch(r'pip install "torchvision(==0\.\d\d\.\*|>=0\.29)"  \(for torch .+\)', found[0].fix)


@pytest.mark.parametrize(('torch', 'torchvision', 'fits'), [
    ('2.11.0', '0.26.0', True),
    ('2.11.0', '0.27.0', False),
    ('2.13.0', '0.28.0', True),
    ('2.13.0', '0.29.1', False),
    ('2.14.1', '0.28.0', False),
    ('2.14.1', '0.29.1', True),
    ('2.15.0', '0.29.2', True),
])
def test_pairs_of_torch_and_torchvision(torch, torchvision, fits):
    """From 0.29 on, torchvision's binaries fit every later PyTorch."""
    found = errors(judge(dict(GOOD, torch=torch, torchvision=torchvision), {}, (3, 11)))
    assert [finding.subject for finding in found] == ([] if fits else ['torchvision'])


def test_operators_of_mmcv_by_torchvision(mmcv_without_ops, monkeypatch):
    monkeypatch.syspath_prepend(mmcv_without_ops.parent)
    finding, = [each for each in examine_environment(['mmcv.ops']) if each.subject == 'mmcv.ops']
    assert (finding.level, finding.text) == ('ok', 'by torchvision')


def test_a_crash_is_reported_and_the_rest_still_tried(tmp_path, monkeypatch):
    (tmp_path / 'crashing.py').write_text('import os\nos.abort()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_probes(['json', 'crashing', 'email', 'no_such_package']) == dict(
        json=dict(version='2.0.9'),
        crashing=dict(error='the Python process crashed'),
        email=dict(version=''),
        no_such_package=dict(error="ModuleNotFoundError: No module named 'no_such_package'"))


@pytest.mark.parametrize(('versions', 'text', 'fix'), [
    ({'torch': '2.3.1'}, '2.8 or later is needed', 'pip install torch==2.15.0 torchvision==0.29.2'),
    ({'torchvision': '0.27.0'}, '0.27.0 is not for torch 2.11.0', 'pip install "torchvision==0.26.*"'),
    ({'mmcv': '2.1.0'}, 'onedl-mmcv and mmcv are both installed', 'pip uninstall -y onedl-mmcv mmcv'),
    ({'mmcv-lite': '2.1.0'}, 'mmcv-lite brings the module mmcv too', 'pip uninstall -y mmcv-lite'),
    ({'onedl-mmdetection': None, 'mmdet': '3.3.0'}, 'packages of both stacks are mixed', 'in a new environment: bash'),
    ({'onedl-mmengine': None, 'mmengine': '0.10.7', 'setuptools': '82.0.0'}, '82.0.0 dropped pkg_resources',
     'pip install setuptools==81.0.0'),
])
def test_bad_combinations(versions, text, fix):
    versions = {name: version for name, version in {**GOOD, **versions}.items() if version}
    found = [finding for finding in errors(judge(versions, {}, (3, 11))) if text in finding.text]
    assert len(found) == 1
    assert fix in found[0].fix
    assert text not in to_text(judge(GOOD, {}, (3, 11)))


@pytest.mark.parametrize(('error', 'fix'), [
    ("ModuleNotFoundError: No module named 'mmcv._ext'", 'python -m pelk_mm.mmcv_ops install'),
    ('ImportError: /x/mmcv/_ext.cpython-311.so: undefined symbol: _ZN3c10', '--no-binary onedl-mmcv onedl-mmcv==2.3.6'),
    ('RuntimeError: operator torchvision::nms does not exist', 'pip install "torchvision==0.26.*"'),
    ("ModuleNotFoundError: No module named 'pkg_resources'", 'setuptools==81.0.0'),
    ('ImportError: libGL.so.1: cannot open shared object file', 'opencv-python-headless'),
    ('AssertionError: MMCV==2.3.0 is used but incompatible', 'pip install "pelk-mm[onedl]"'),
    ("ModuleNotFoundError: No module named 'ftfy'", 'pip install ftfy'),
    ("ModuleNotFoundError: No module named 'cv2'", 'pip install opencv-python-headless'),
    ("ModuleNotFoundError: No module named 'sklearn.datasets'", 'pip install "pelk-mm[digits]"'),
    ('ModuleNotFoundError: pelk_mm.models needs mmcv, which is not installed: pip ...', 'pip install "pelk-mm[onedl]"'),
    ("ModuleNotFoundError: No module named 'torchvision'", 'pip install "torchvision==0.26.*"  (for torch 2.11.0)'),
    ("ModuleNotFoundError: No module named 'torch'", 'pip install torch==2.15.0 torchvision==0.29.2'),
    ("ModuleNotFoundError: No module named 'mmdet'", 'source .venv/bin/activate'),
    ('the Python process crashed', 'In a new environment: bash'),
])
def test_fixes_of_failed_imports(error, fix):
    finding, = errors(judge(GOOD, {'part': dict(error=error)}, (3, 11)))
    assert finding.subject == 'part'
    assert finding.text == error
    assert fix in finding.fix


def test_fixes_name_the_pinned_versions(root):
    names = ('build', 'constraints', 'torch')
    pinned = ''.join((root / 'requirements' / f'{name}.txt').read_text() for name in names)
    pins = [word for _, fix in environment.FIXES for word in fix.replace(',', ' ').split() if '==' in word]
    assert pins == ['setuptools==81.0.0', 'numpy==2.2.6', 'torch==2.15.0', 'torchvision==0.29.2']
    assert all(pin in pinned for pin in pins)


def test_a_wheel_has_no_setup_script(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, '_SETUP_SCRIPT', tmp_path / 'setup_env.sh')
    finding, = errors(judge(GOOD, dict(mmdet=dict(error="ModuleNotFoundError: No module named 'mmdet'")), (3, 11)))
    assert finding.fix == 'pip install "pelk-mm[onedl]"'
    mixed = {name: version for name, version in GOOD.items() if name != 'onedl-mmengine'} | {'mmengine': '0.10.7'}
    assert all('setup_env.sh' not in finding.fix for finding in judge(mixed, {}, (3, 9)))


@pytest.mark.parametrize(('devices', 'ops', 'level', 'text'), [
    (NO_GPU, {}, 'ok', 'no GPU; 2 CPU threads'),
    (GPU, dict(cuda='13.0'), 'ok', '13.0, NVIDIA A100'),
    (GPU, dict(cuda='not available'), 'error', 'detection fails on the GPU'),
    (dict(GPU, capabilities=[[8, 6]]), {}, 'ok', '13.0, NVIDIA A100'),
    (dict(GPU, capabilities=[[7, 0]]), {}, 'error', 'no kernels for NVIDIA A100 (sm_70)'),
    (dict(GPU, capabilities=[[9, 0]]), {}, 'error', 'no kernels for NVIDIA A100 (sm_90)'),
    (dict(NO_GPU, driver=True), {}, 'error', 'PyTorch for CUDA 13.0 sees no GPU'),
    (dict(NO_GPU, driver=True, hidden=True), {}, 'ok', 'hidden by CUDA_VISIBLE_DEVICES'),
    (dict(NO_GPU, driver=True, built_for=None), {}, 'error', 'built for the CPU only'),
])
def test_devices(devices, ops, level, text):
    results = {'devices': devices, 'mmcv.ops': dict(ops, version='')}
    found = [finding for finding in judge(GOOD, results, (3, 11)) if text in finding.text]
    assert [finding.level for finding in found] == [level]


def test_builds_for_different_cuda():
    results = dict(torch=dict(version='2.11.0+cu130'), torchvision=dict(version='0.26.0+cpu'))
    finding, = errors(judge(GOOD, results, (3, 11)))
    assert 'another CUDA' in finding.text


def test_python_and_compiler(monkeypatch):
    assert [finding.level for finding in judge(GOOD, {}, (3, 9))][0] == 'error'
    assert [finding.level for finding in judge(GOOD, {}, (3, 13))][0] == 'ok'
    assert [finding.level for finding in judge(GOOD, {}, (3, 15))][0] == 'note'
    monkeypatch.setenv('CXX', '/nowhere/c++')
    assert any('native CPU backend cannot be built' in finding.text for finding in judge(GOOD, {}, (3, 11)))


def test_findings_to_read():
    text = to_text([Finding('ok', 'a', 'fine'), Finding('error', 'b', 'word ' * 30, 'do this\nthen that')])
    lines = text.splitlines()
    assert lines[0] == 'ok    a               fine'
    assert lines[1].startswith('ERROR b               word')
    assert lines[-2:] == ['      fix: do this', '           then that']
    assert max(map(len, lines)) <= 110


def test_the_diagnosis_itself_imports_nothing_that_could_be_broken():
    code = 'import sys, pelk_mm.diagnostics.environment; sys.exit("torch" in sys.modules or "mmengine" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_tool_on_this_environment(root):
    """The environment of the tests is sound; compiled operators of mmcv may know nothing of a GPU that there is."""
    result = subprocess.run([sys.executable, root / 'tools/misc/check_env.py'], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    subjects = {line[6:22].strip(): line[:6].strip() for line in lines if line[:6].strip()}
    sound = [name for name in probes.PACKAGES if name != 'mmcv.ops']
    assert [subjects[name] for name in sound] == ['ok'] * len(sound)
    assert len(lines) <= 40
    assert 'reference' in next(line for line in lines if 'op on cpu' in line)
    assert result.returncode == any(level == 'ERROR' for level in subjects.values())


def test_the_tool_exits_with_1(run_tool, monkeypatch):
    broken = dict(mmdet=dict(error="ModuleNotFoundError: No module named 'mmdet'"))
    monkeypatch.setattr(environment, 'run_probes', lambda parts: broken)
    code, printed = run_tool('misc/check_env.py')
    assert code == 1
    assert 'ERROR mmdet' in printed
    assert has_error(judge(GOOD, broken, (3, 11)))
