"""Missing packages are named together with the line that installs them."""

import subprocess
import sys

import pytest

from pelk_mm.install_hints import install_line, require

STACK = ', which is not installed: pip install "pelk-mm[onedl]"'
PLAIN = '. Without it, pelk_mm.nets has the same networks in plain PyTorch'
# Python without some packages; of each module that is imported, the error.
CODE = """
import importlib, sys
sys.modules.update(dict.fromkeys({missing!r}))
for name in {modules!r}:
    try:
        importlib.import_module(name)
        print(name, 'works')
    except ImportError as error:
        print(name, error)
"""


def imports(missing, modules):
    code = CODE.format(missing=missing, modules=modules)
    result = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())


def test_without_openmmlab():
    found = imports(['mmengine', 'mmcv', 'mmseg', 'mmdet', 'mmpretrain'], [
        'pelk_mm', 'pelk_mm.ops', 'pelk_mm.layers', 'pelk_mm.nets', 'pelk_mm.mmcv_ops', 'pelk_mm.models',
        'pelk_mm.engine', 'pelk_mm.datasets', 'pelk_mm.analysis', 'pelk_mm.reports', 'pelk_mm.deploy', 'pelk_mm.compat',
        'pelk_mm.registry', 'pelk_mm.checkpoints', 'pelk_mm.diagnostics.environment', 'pelk_mm.diagnostics.checkpoint',
        'pelk_mm.models.backbones'
    ])
    assert [name for name, text in found.items() if text == 'works'] == [
        'pelk_mm', 'pelk_mm.ops', 'pelk_mm.layers', 'pelk_mm.nets', 'pelk_mm.mmcv_ops',
        'pelk_mm.diagnostics.environment'
    ]
    for name in ('engine', 'datasets', 'analysis', 'reports', 'deploy', 'compat', 'registry', 'checkpoints',
                 'diagnostics.checkpoint'):
        assert found[f'pelk_mm.{name}'] == f'pelk_mm.{name} needs mmengine{STACK}'
    for name in ('models', 'models.backbones'):
        assert found[f'pelk_mm.{name}'] == f'pelk_mm.models needs mmengine{STACK}{PLAIN}'


def test_without_timm():
    found = imports(['timm'], ['pelk_mm.nets', 'pelk_mm.timm'])
    line = ', which is not installed: pip install "pelk-mm[timm]"'
    assert found == {'pelk_mm.nets': 'works', 'pelk_mm.timm': f'pelk_mm.timm needs timm{line}{PLAIN}'}


def test_with_mmengine_only():
    found = imports(['mmcv', 'mmseg', 'mmdet', 'mmpretrain'], ['pelk_mm.models', 'pelk_mm.registry'])
    assert found == {'pelk_mm.models': f'pelk_mm.models needs mmcv{STACK}{PLAIN}', 'pelk_mm.registry': 'works'}


def test_where_they_are_needed(monkeypatch, tmp_path):
    from pelk_mm.datasets.digit_rendering import load_handwritten_digits
    from pelk_mm.deploy import ExportedModel
    from pelk_mm.deploy.onnx_ops import translations
    for name in ('any.onnx', 'any.xml'):
        (tmp_path / name).touch()
    for module, call, line in (('sklearn', load_handwritten_digits, 'pip install "pelk-mm[digits]"'),
                               ('onnxscript', translations, 'pip install "pelk-mm[deploy]"'),
                               ('onnxruntime', lambda: ExportedModel(tmp_path / 'any.onnx'),
                                'pip install "pelk-mm[deploy]"'),
                               ('openvino', lambda: ExportedModel(tmp_path / 'any.xml'),
                                'pip install "pelk-mm[openvino]"')):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError) as error:
            call()
        assert str(error.value).endswith(f'needs {module}, which is not installed: {line}')
        assert error.value.name == module


@pytest.mark.parametrize(('module', 'line'), [
    ('cv2', 'pip install opencv-python-headless'),
    ('mmengine.runner', 'pip install "pelk-mm[onedl]"'),
    ('ftfy', 'pip install ftfy'),
])
def test_lines(module, line):
    assert install_line(module) == line


def test_extras_of_the_lines_exist(root):
    from pelk_mm.install_hints import INSTALL_LINES
    extras = {line.partition('[')[2].partition(']')[0] for line in INSTALL_LINES.values() if '[' in line}
    assert extras == {'onedl', 'deploy', 'digits', 'openvino', 'tests', 'timm'}
    declared = (root / 'setup.py').read_text(encoding='utf-8')
    assert all(f"'{extra}'" in declared and (root / f'requirements/{extra}.txt').is_file() for extra in extras)


def test_packages_are_looked_for_and_not_imported():
    require('json', 'torch', by='this test')
    assert imports([], ['pelk_mm.install_hints']) == {'pelk_mm.install_hints': 'works'}
