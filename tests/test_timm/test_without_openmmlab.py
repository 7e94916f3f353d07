"""The first lines of the guide need PyTorch and timm only."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip('timm')

BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('mmengine', 'mmcv', 'mmseg', 'mmdet', 'mmpretrain')))\n"
CHECK = '''
net.eval()
source = timm.create_model('convnext_tiny', features_only=True, pretrained=True,
                           pretrained_cfg_overlay=dict(file='convnext_tiny.pth')).eval()
images = torch.rand(1, 3, 75, 61)
with torch.no_grad():
    print(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(net(images), source(images), strict=True)))
print(sorted({name.partition('.')[0] for name in sys.modules} & {'transformers', 'yapf', 'addict'}))
'''


@pytest.mark.parametrize('page', ['docs/guides/timm_and_transformers.md'])
def test_five_lines(root, page, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(root), prepend=os.pathsep)
    blocks = re.findall(r'```python\n(.*?)```', (root / page).read_text(encoding='utf-8'), re.DOTALL)
    lines = next(block for block in blocks if 'pelk_convnext_tiny_51' in block)
    result = subprocess.run([sys.executable, '-c', BLOCKED + lines + CHECK], cwd=tmp_path, capture_output=True,
                            text=True, check=True)
    shapes, difference, others = result.stdout.splitlines()
    assert shapes == '[(1, 96, 16, 16), (1, 192, 8, 8), (1, 384, 4, 4), (1, 768, 2, 2)]'
    assert float(difference) < 1e-5
    assert others == '[]'
