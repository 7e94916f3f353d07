"""The architecture's import rules, read from the sources."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / 'pelk_mm').rglob('*.py'))
TOOLBOXES = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'}
# Parts of the package that each layer may import. Nothing imports upwards.
BELOW = {
    'ops': {'ops'},
    'layers': {'ops', 'layers'},
    'nets': {'layers', 'module_names', 'nets', 'ops'},
    'models': {'install_hints', 'layers', 'models', 'nets', 'registry'},
    'datasets': {'datasets', 'image_decoding', 'image_names', 'install_hints', 'registry'},
    'checkpoints': {'checkpoints', 'install_hints', 'module_names', 'nets', 'registry'},
    'engine': {'checkpoints', 'compat', 'engine', 'image_decoding', 'install_hints', 'module_names', 'registry'},
    'deploy': {'analysis', 'checkpoints', 'deploy', 'engine', 'image_names', 'install_hints', 'layers', 'ops'},
    'reports': {'analysis', 'checkpoints', 'compat', 'engine', 'install_hints', 'reports'},
    'diagnostics': {'analysis', 'checkpoints', 'diagnostics', 'engine', 'install_hints', 'mmcv_ops', 'nets', 'ops'},
    'mmcv_ops': {'install_hints', 'mmcv_ops'},
    'timm': {'install_hints', 'nets', 'timm'},
}


def module_of(file: Path) -> list:
    parts = list(file.relative_to(ROOT).with_suffix('').parts)
    return parts[:-1] if parts[-1] == '__init__' else parts


def imports_of(source: str, file: Path) -> set:
    """Absolute dotted names of everything that a file imports, also inside functions and type-checking blocks."""
    package = module_of(file)
    if file.name != '__init__.py':
        package = package[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = '.'.join([*base, *([node.module] if node.module else [])])
            names |= {f'{base}.{alias.name}' for alias in node.names}
    return names


def broken_rules(source: str, file: Path) -> list:
    """One line for every architecture rule that a file of the package breaks."""
    layer = file.relative_to(ROOT / 'pelk_mm').parts[0]
    imported = imports_of(source, file)
    external = {name.partition('.')[0] for name in imported} - set(sys.stdlib_module_names) - {'pelk_mm'}
    own = {name.split('.')[1] for name in imported if name.startswith('pelk_mm.')}
    broken = []
    if file.name.endswith('_triton.py'):
        external.discard('triton')
    if 'triton' in external:
        broken.append('only *_triton.py may import triton')
    if layer in ('ops', 'layers', 'nets') and external - {'torch'}:
        broken.append(f'{layer} may import torch only, got {external - {"torch"}}')
    if layer == 'timm' and external - {'timm', 'torch'}:
        broken.append(f'timm may import timm and torch only, got {external - {"timm", "torch"}}')
    if 'timm' in own and layer != 'timm':
        broken.append('pelk_mm.timm is for users to import')
    if layer == 'models' and external & {'mmdet', 'mmpretrain', 'mmseg'}:
        broken.append(f'models may name toolboxes in configs only, got {external & TOOLBOXES}')
    if layer in BELOW and own - BELOW[layer] - {'__version__'}:
        broken.append(f'{layer} may not import {own - BELOW[layer]} of pelk_mm')
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'print':
            broken.append(f'line {node.lineno}: the library does not print')
        if isinstance(node, ast.Attribute) and ast.unparse(node) == 'sys.path':
            broken.append(f'line {node.lineno}: the library does not change sys.path')
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
        if any(isinstance(target, ast.Attribute) for target in targets):
            broken.append(f'line {node.lineno}: importing a module sets nothing elsewhere')
    return broken


@pytest.mark.parametrize('file', LIBRARY, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_keeps_the_rules(file):
    assert broken_rules(file.read_text(encoding='utf-8'), file) == []


@pytest.mark.parametrize(('path', 'source', 'message'), [
    ('ops/a.py', 'import mmengine', 'torch only'),
    ('ops/a.py', 'def f():\n    from ..layers import x', 'may not import'),
    ('ops/__init__.py', 'from ..registry import MODELS', 'may not import'),
    ('layers/a.py', 'from ..models import PeLK', 'may not import'),
    ('layers/a.py', 'import numpy', 'torch only'),
    ('nets/a.py', 'from mmengine.model import BaseModule', 'torch only'),
    ('nets/a.py', 'from ..models import PeLK', 'may not import'),
    ('nets/a.py', 'from ..registry import MODELS', 'may not import'),
    ('layers/a.py', 'from ..nets import PeLK', 'may not import'),
    ('models/a.py', 'from mmseg.registry import MODELS', 'in configs only'),
    ('models/a.py', 'from ..engine import hooks', 'may not import'),
    ('engine/hooks/a.py', 'from pelk_mm.models import PeLK', 'may not import'),
    ('checkpoints/a.py', 'from ..engine import launch', 'may not import'),
    ('checkpoints/a.py', 'from ..analysis import build_model', 'may not import'),
    ('ops/fast.py', 'import triton.language as tl', 'may import triton'),
    ('ops/fast_triton.py', 'import triton, mmcv', 'torch only'),
    ('reports/a.py', 'from ..deploy import merge', 'may not import'),
    ('analysis/a.py', 'print(1)', 'does not print'),
    ('analysis/a.py', 'import sys\nsys.path.append("x")', 'sys.path'),
    ('analysis/a.py', 'from .. import timm', 'for users'),
    ('timm/a.py', 'import timm, transformers', 'torch only'),
    ('timm/a.py', 'from ..models import PeLK', 'may not import'),
    ('engine/a.py', 'import torch\ntorch.backends.cudnn.benchmark = True', 'sets nothing'),
])
def test_broken_rules_are_found(path, source, message):
    assert any(message in line for line in broken_rules(source, ROOT / 'pelk_mm' / path))


CSRC = ROOT / 'pelk_mm' / 'ops' / 'peripheral_conv2d' / 'csrc'


@pytest.mark.parametrize('file', sorted(CSRC.iterdir()), ids=lambda file: file.name)
def test_cpp_needs_standard_headers_only(file):
    """Each file includes others beside it and the standard library's, and is short enough to be read."""
    lines = file.read_text(encoding='utf-8').splitlines()
    includes = [line.split()[1] for line in lines if line.startswith('#include')]
    others = [name for name in includes if not re.fullmatch(r'<[a-z_]+>', name) and name != '<omp.h>']
    assert [name for name in others if name.strip('"') not in {header.name for header in CSRC.glob('*.h')}] == []
    assert len(lines) <= 400


def loaded_by(statement: str) -> set:
    """Names of the third-party packages that a fresh Python has loaded after a statement; it must print nothing."""
    code = f'import sys; {statement}; sys.stderr.write(" ".join({{name.partition(".")[0] for name in sys.modules}}))'
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == ''
    return set(result.stderr.split()) - set(sys.stdlib_module_names)


def test_the_package_itself_loads_nothing():
    assert not loaded_by('import pelk_mm') & {'torch', 'numpy', *TOOLBOXES}


def test_ops_layers_and_nets_load_no_openmmlab():
    loaded = loaded_by('import pelk_mm.ops, pelk_mm.layers, pelk_mm.nets')
    assert 'torch' in loaded
    assert not loaded & TOOLBOXES


def test_models_and_engine_load_no_toolbox():
    loaded = loaded_by('import pelk_mm.models, pelk_mm.engine')
    assert 'mmengine' in loaded
    assert not loaded & {'mmdet', 'mmpretrain', 'mmseg'}
