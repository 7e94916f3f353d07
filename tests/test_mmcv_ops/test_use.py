"""The stand-in where mmcv looks for operators: put in one process, or for every program of an environment."""

import json
import re
import sys
import types
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from pelk_mm import mmcv_ops
from pelk_mm.mmcv_ops.__main__ import main
from pelk_mm.models import PeLK
from pelk_mm.testing.forks import ForkServer

pytestmark = pytest.mark.slow

NMS = ('import torch; from mmcv.ops import nms; print(nms(torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3.]]), '
       'torch.tensor([.5, .9]), .5)[1].tolist())')


START = """
import runpy, sys
sys.path.insert(0, {site!r})
sys.dont_write_bytecode = False
what, *sys.argv = sys.argv[1:]
if what == '-c':
    exec(sys.argv[0])
elif what == '-m':
    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
else:
    sys.argv.insert(0, what)
    runpy.run_path(what, run_name='__main__')
"""


@pytest.fixture(scope='module')
def server():
    """Processes that have imported what takes seconds, and neither mmcv nor torchvision."""
    server = ForkServer('torch._dynamo', 'mmengine.runner', 'matplotlib.pyplot', 'scipy.stats', 'sklearn.utils')
    yield server
    server.close()


@pytest.fixture
def python(server, mmcv_without_ops, tmp_path):
    """Run Python where mmcv has no operators at all, to an exit code; returns what is printed."""
    (tmp_path / 'start.py').write_text(START.format(site=str(mmcv_without_ops.parent)))

    def run(*arguments, code=0, **variables):
        log = tmp_path / 'log.txt'
        process = server.start([tmp_path / 'start.py', *arguments], log, variables)
        assert process.wait(300) == code, log.read_text()[-3000:]
        return log.read_text()

    return run


def contents(folder: Path) -> dict:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.iterdir()) if file.is_file() and not file.is_symlink()
    }


def test_one_import_is_enough(python):
    modules = 'pelk_mm, pelk_mm.ops, pelk_mm.models, pelk_mm.engine, pelk_mm.compat'
    assert "No module named 'mmcv._ext'" in python('-c', f'import {modules}; {NMS}', code=1)
    code = f'import sys, pelk_mm.mmcv_ops, mmcv.ops; print("torchvision" in sys.modules); {NMS}'
    assert python('-c', code) == 'False\n[1]\n'


def test_our_tools_need_nothing(python):
    assert python('-c', f'from pelk_mm.compat import setup; setup(); {NMS}') == '[1]\n'


def test_a_config_of_any_toolbox_names_it(python, tmp_path):
    imports = dict(imports=['pelk_mm.mmcv_ops'], allow_failed_imports=False)
    (tmp_path / 'config.py').write_text(f'custom_imports = {imports}')
    code = f'from mmengine.config import Config; Config.fromfile("{tmp_path}/config.py"); import mmdet.models; {NMS}'
    assert python('-c', code).splitlines()[-1] == '[1]'


LOADED = 'import sys, pelk_mm.mmcv_ops, mmcv.ops; print(sys.modules["mmcv._ext"].__name__)'
COMPILED = 'from pelk_mm.mmcv_ops.extension import __getattr__  # Takes the part of the compiled module.'


@pytest.mark.parametrize(('code', 'variables', 'expected'), [
    (LOADED, {}, 'mmcv._ext'),
    (LOADED, dict(PELK_MM_MMCV_OPS='torchvision'),
     'pelk_mm.mmcv_ops.extension'),
    ('from pelk_mm.mmcv_ops import use; print(use(), use(replace_compiled=True)); import mmcv.ops', {}, 'False True'),
], ids=['used', 'replaced by the environment', 'replaced by a call'])
def test_compiled_operators(python, mmcv_without_ops, code, variables, expected):
    (mmcv_without_ops / '_ext.py').write_text(COMPILED)
    assert python('-c', code, **variables) == f'{expected}\n'


def test_compiled_operators_that_are_loaded_are_not_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', types.ModuleType('mmcv._ext'))
    assert mmcv_ops.use() is False
    with pytest.raises(RuntimeError, match='is loaded already'):
        mmcv_ops.use(replace_compiled=True)
    assert sys.modules['mmcv._ext'].__name__ == 'mmcv._ext'


@pytest.fixture
def command(mmcv_without_ops, monkeypatch, capsys):
    """Run ``python -m pelk_mm.mmcv_ops`` in this process, on a package mmcv that has no operators."""
    monkeypatch.syspath_prepend(mmcv_without_ops.parent)
    monkeypatch.delitem(sys.modules, 'mmcv')

    def run(name):
        monkeypatch.setattr(sys, 'argv', ['mmcv_ops', name])
        code = main()
        out, err = capsys.readouterr()
        return code, out + err

    return run


def test_install_and_remove(python, command, mmcv_without_ops):
    before = contents(mmcv_without_ops)
    code, printed = command('status')
    assert (code, printed[:25]) == (1, 'mmcv has no operators her')
    code, printed = command('install')
    assert (code, printed.partition(':')[0]) == (0, f'Wrote {mmcv_without_ops}/_ext.py')
    assert command('install') == (0, f'Nothing to do: {mmcv_without_ops}/_ext.py is there.\n')
    assert command('status') == (0, 'mmcv uses torchvision and PyTorch in every program of this environment, by '
                                 f'{mmcv_without_ops}/_ext.py.\n')
    assert python('-c', NMS) == '[1]\n'
    cached = [*(mmcv_without_ops / '__pycache__').glob('_ext.*.pyc')]
    assert len(cached) == 1
    assert python('-m', 'pelk_mm.mmcv_ops', 'remove') == f'Removed {mmcv_without_ops}/_ext.py.\n'
    assert contents(mmcv_without_ops) == before
    assert not cached[0].exists()
    assert command('remove') == (0, f'Nothing to remove: {mmcv_without_ops}/_ext.py is not there.\n')


@pytest.mark.parametrize('name', ['_ext.py', '_ext' + EXTENSION_SUFFIXES[0]])
def test_operators_that_are_there_stay_unchanged(command, mmcv_without_ops, name):
    file = mmcv_without_ops / name
    file.write_text('mine = True\n')
    for word, start in (('install', 'Nothing done'), ('remove', 'Nothing to remove'), ('status', 'mmcv uses')):
        code, printed = command(word)
        assert (code, printed[:len(start)]) == (0, start)
        assert str(file) in printed
    assert contents(mmcv_without_ops) == {name: b'mine = True\n'}


def test_compiled_operators_that_come_later_win(command, mmcv_without_ops):
    command('install')
    compiled = mmcv_without_ops / f'_ext{EXTENSION_SUFFIXES[-1]}'
    compiled.write_bytes(b'')
    assert command('status') == (0, f'mmcv uses its compiled operators, {compiled}.\n')
    assert command('remove') == (0, f'Removed {mmcv_without_ops}/_ext.py.\n')
    assert contents(mmcv_without_ops) == {compiled.name: b''}


def test_a_folder_that_may_not_be_written(command, mmcv_without_ops, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(Path, 'write_text', refuse)
    code, printed = command('install')
    assert code == 1
    assert printed == f'{mmcv_without_ops}/_ext.py cannot be changed: Permission denied. Run this as its owner.\n'


def test_mmcv_lite_has_no_operators_to_stand_in_for(command, mmcv_without_ops):
    (mmcv_without_ops / 'ops').unlink()
    code, printed = command('install')
    assert (code, 'pip uninstall mmcv-lite' in printed) == (1, True)
    assert not contents(mmcv_without_ops)


PICO = """dict(type='pelk_mm.PeLK', arch='pico', out_indices={out_indices}, gap_before_final_norm=False)"""
DETECTOR = """
_base_ = '{base}'
custom_imports = dict(imports=['pelk_mm.mmcv_ops', 'pelk_mm.models'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, **{backbone}), data_preprocessor=dict(batch_augments=None), {model})
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')]
train_dataloader = dict(_delete_=True, batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=dict(
    type='CocoDataset', ann_file='{folder}/coco.json', data_prefix=dict(img='{folder}/'), pipeline=pipeline))
"""
SEGMENTOR = """
_base_ = '{base}'
custom_imports = dict(imports=['pelk_mm.mmcv_ops', 'pelk_mm.models'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, **{backbone}), data_preprocessor=dict(size=(64, 64)), {model})
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(_delete_=True, batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=dict(
    type='CityscapesDataset', data_prefix=dict(img_path='{folder}', seg_map_path='{folder}'), img_suffix='image.jpg',
    seg_map_suffix='ids.png', pipeline=pipeline))
"""
ONE_STEP = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1, val_interval=10)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
default_hooks = dict(logger=dict(interval=1))
"""
CHANNELS = PeLK('pico').channels


def write_images(folder: Path) -> None:
    """An image and its label map, and the same as a file of COCO's."""
    cv2.imwrite(str(folder / 'image.jpg'), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[8:40, 16:50] = 3
    cv2.imwrite(str(folder / 'ids.png'), labels)
    annotation = dict(
        id=1, image_id=1, category_id=1, iscrowd=0, area=34 * 32, bbox=[16, 8, 34, 32],
        segmentation=[[16, 8, 50, 8, 50, 40, 16, 40]])  # yapf: disable
    (folder / 'coco.json').write_text(
        json.dumps(
            dict(
                images=[dict(id=1, file_name='image.jpg', height=64, width=64)],
                annotations=[annotation],
                categories=[dict(id=1, name='person')])))


@pytest.mark.parametrize(('toolbox', 'config', 'template', 'out_indices', 'part'), [
    ('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', DETECTOR, (0, 1, 2, 3), 'neck'),
    ('mmdet', 'dino/dino-4scale_r50_8xb2-12e_coco.py', DETECTOR, (1, 2, 3), 'neck'),
    ('mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', DETECTOR, (0, 1, 2, 3), 'panoptic_head'),
    ('mmseg', 'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py', SEGMENTOR, (0, 1, 2, 3), 'decode_head'),
], ids=['faster-rcnn', 'dino', 'mask2former', 'mmseg-mask2former'])  # yapf: disable
def test_upstream_tools_train_a_step(python, tmp_path, toolbox, config, template, out_indices, part):
    """mmdet's and mmseg's own tools/train.py, with a backbone of ours and no compiled operator anywhere."""
    write_images(tmp_path)
    mim = Path(find_spec(toolbox).origin).parent / '.mim'
    backbone = PICO.format(out_indices=out_indices)
    model = f'{part}=dict(in_channels={[CHANNELS[index] for index in out_indices]})'
    if 'dino' in config:
        # Maps of 64 x 64 pixels have few places to choose queries from.
        model += ', num_queries=50'
    (tmp_path / 'config.py').write_text(
        template.format(base=mim / 'configs' / config, backbone=backbone, model=model, folder=tmp_path) + ONE_STEP)
    printed = python(mim / 'tools' / 'train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'work')
    loss = re.search(r'\(train\) .* loss: ([\d.]+)', printed)
    assert 0 < float(loss.group(1)) < 1000, printed[-3000:]
    assert len(list((tmp_path / 'work').glob('*_1.pth'))) == 1
