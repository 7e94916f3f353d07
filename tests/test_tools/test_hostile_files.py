"""A file that runs code when it is loaded does not run it in any of our tools, in any place where it is planted.

The code makes a folder, ``ran``. That the trap works is tested, too: whoever loads these files unsafely makes it.
"""

import ast
import json
import logging
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from pelk_mm import compat
from pelk_mm.checkpoints import loading
from pelk_mm.deploy import OnnxModel
from pelk_mm.testing.tiny_models import tiny_config, write_images, write_tiny_model

from ..helpers.toy_files import write_onnx_stub, write_toy_module

ROOT = Path(__file__).resolve().parents[2]


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.system, (f'mkdir -p {self.folder}', )


def save_with(**entries):
    return lambda content, file: torch.save({**content, **entries}, file)


def variants(code) -> dict:
    """Return the functions that make hostile files, of a good content and the file, by name."""

    def plain_pickle(content, file):
        file.write_bytes(pickle.dumps(dict(content, extra=code), protocol=2))

    def torchscript(content, file):
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(file))

    def legacy(content, file):
        torch.save(dict(content, extra=code), file, _use_new_zipfile_serialization=False)

    return {
        'zip': save_with(extra=code),
        'legacy': legacy,
        'plain pickle': plain_pickle,
        'meta': lambda content, file: torch.save(dict(content, meta=dict(content['meta'], time=code)), file),
        'message hub': save_with(message_hub=dict(log_scalars={}, runtime_info=dict(seed=code), resumed_keys={})),
        'optimizer': save_with(optimizer=dict(state={0: dict(step=code)}, param_groups=[])),
        'weights': lambda content, file: torch.save(dict(content, state_dict={'backbone.a': code}), file),
        'alone': lambda content, file: torch.save(code, file),
        'TorchScript': torchscript,
    }


VARIANTS = list(variants(None))


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """A folder with ``tiny.py`` and ``tiny.pth`` of a classifier, ``toy.py``, and ``images``."""
    folder = tmp_path_factory.mktemp('template')
    for name in ('toys', 'images'):
        (folder / name).mkdir()
    toy = write_toy_module(folder / 'toys', 'hostile_toys')
    toy['custom_imports']['imports'] += ['pelk_mm.models', 'pelk_mm.engine']
    toy['train_cfg'] = dict(by_epoch=True, max_epochs=2)
    write_images(folder / 'images', 1)
    for file, name in zip(write_tiny_model('classification', folder), ('tiny.py', 'tiny.pth')):
        file.rename(folder / name)
    test = dict(
        test_dataloader=toy['train_dataloader'],
        test_cfg=dict(),
        test_evaluator=dict(type='DumpResults', out_file_path='predictions.pkl'))
    Config(dict(toy, **test)).dump(folder / 'toy.py')
    tiny = tiny_config('classification')
    tiny.model.backbone.init_cfg = dict(type='pelk_mm.PretrainedBackbone', checkpoint='bad.pth')
    tiny = {key: value for key, value in tiny.to_dict().items() if not key.startswith('test')}
    Config({**tiny, **toy, 'model': tiny['model']}).dump(folder / 'tiny_train.py')
    return folder


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    """A copy of the template to work in."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(tmp_path / 'toys')
    monkeypatch.setattr(loading, '_trusted', set())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plant(place):
    """Make a hostile ``bad.pth`` that would otherwise be good, and return where the proof would be."""

    def _plant(variant):
        content = torch.load(place / 'tiny.pth', weights_only=True)
        content['meta'].update(epoch=0, iter=0)
        variants(Code(place / 'ran'))[variant](content, place / 'bad.pth')
        return place / 'ran'

    return _plant


@pytest.fixture
def said(run_tool, capfd):
    """Runs a tool and returns what it says: its output and its error."""

    def run(tool, *arguments):
        try:
            return '\n'.join(map(str, run_tool(tool, *arguments)))
        except Exception as error:
            return '\n'.join([*capfd.readouterr(), f'{type(error).__name__}: {error}'])

    return run


# Every way in: name -> tool and arguments.
WAYS = {
    'resume': ('train.py', 'toy.py', '--resume', 'bad.pth'),
    'load_from': ('train.py', 'toy.py', '--cfg-options', 'load_from=bad.pth'),
    'init_cfg': ('train.py', 'tiny_train.py'),
    "MMEngine's init_cfg": ('train.py', 'tiny_train.py', '--cfg-options', 'model.backbone.init_cfg.type=Pretrained'),
    'test': ('test.py', 'toy.py', 'bad.pth'),
    'image_demo': ('image_demo.py', 'images', 'tiny.py', 'bad.pth', '--out-dir', 'out', '--device', 'cpu'),
    'visualize_erf': ('analysis_tools/visualize_erf.py', 'tiny.py', '--checkpoints', 'bad.pth', '--images', 'images',
                      '--sizes', '64'),
    'visualize_kernels': ('analysis_tools/visualize_kernels.py', 'tiny.py', 'bad.pth'),
    'switch_to_deploy': ('model_converters/switch_to_deploy.py', 'tiny.py', 'bad.pth', 'out.pth', '--images', 'images'),
    'export': ('model_converters/export.py', 'tiny.py', 'bad.pth', 'out.onnx', '--images', 'images'),
    'publish_model': ('model_converters/publish_model.py', 'bad.pth', 'out.pth'),
    'classifier_to_backbone': ('model_converters/classifier_to_backbone.py', 'bad.pth', 'out.pth'),
    'convnext_to_mmpretrain': ('model_converters/convnext_to_mmpretrain.py', 'bad.pth', 'out.pth'),
    'grow_convnext': ('model_converters/grow_convnext.py', 'bad.pth', 'out.pth'),
    'slak_to_pelk_mm': ('model_converters/slak_to_pelk_mm.py', 'bad.pth', 'out.pth'),
    'check_checkpoint': ('misc/check_checkpoint.py', 'bad.pth', 'tiny.py'),
}
# Where the file is read by MMEngine, by PretrainedBackbone, by safe_load, and by the diagnosis.
READERS = ('resume', 'init_cfg', 'publish_model', 'check_checkpoint')


def tools_with_checkpoints() -> set:
    """Every tool that has an argument whose name or help speaks of a checkpoint, its own or by ``convert_main``."""
    found = set()
    for file in sorted((ROOT / 'tools').rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            called = getattr(node.func, 'attr', getattr(node.func, 'id', '')) if isinstance(node, ast.Call) else ''
            if called in ('add_argument', 'convert_main'):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                if any('checkpoint' in str(text).lower() for text in texts):
                    found.add(str(file.relative_to(ROOT / 'tools')))
    return found


def test_every_tool_that_takes_a_checkpoint_is_here():
    assert tools_with_checkpoints() == {tool for tool, *_ in WAYS.values()}


@pytest.mark.parametrize(('way', 'variant'),
                         [(way, 'zip') for way in WAYS if way not in READERS] +
                         [(way, variant) for way in READERS for variant in VARIANTS])
def test_it_does_not_run(place, plant, said, way, variant):
    proof, before = plant(variant), sorted(place.iterdir())
    message = said(*WAYS[way])
    assert not proof.exists()
    assert 'bad.pth' in message
    if (way, variant) in (('resume', 'legacy'), ('resume', 'plain pickle')):
        # What training saves are archives.
        assert 'or it is no file of torch.save' in message
    elif variant == 'TorchScript':
        assert 'would open TorchScript archives' in message
    elif variant == 'plain pickle':
        # Of a file without PyTorch's own frame the first thing that is not allowed are its tensors.
        assert 'would call torch.storage._load_from_bytes' in message
    else:
        assert 'would call posix.system' in message
        assert 'Nothing of it was run' in message
        assert 'only the state_dict' in message or 'only its state_dict' in message
    assert ('ERROR code' in message) == (way == 'check_checkpoint')
    # PyTorch's own advice is to load the file unsafely.
    assert 'arbitrary code execution' not in message
    assert [path for path in place.iterdir() if path not in before and path.suffix in ('.pth', '.onnx')] == []


def test_it_does_not_run_when_a_work_directory_is_resumed(place, plant, said):
    proof = plant('zip')
    (place / 'work_dirs/toy').mkdir(parents=True)
    shutil.move(place / 'bad.pth', place / 'work_dirs/toy/epoch_1.pth')
    (place / 'work_dirs/toy/last_checkpoint').write_text(str(place / 'work_dirs/toy/epoch_1.pth'))
    message = said('train.py', 'toy.py', '--resume')
    assert not proof.exists()
    assert 'epoch_1.pth' in message
    assert 'would call posix.system' in message
    assert (place / 'work_dirs/toy/epoch_1.pth').exists()


def test_a_config_in_the_meta_data_does_not_run(place, said):
    """MMEngine would run ``meta['config']``, a mere text, as Python code."""
    said('train.py', 'toy.py', '--cfg-options', 'train_cfg.max_epochs=1')
    content = torch.load(place / 'work_dirs/toy/epoch_1.pth', weights_only=False)
    content['meta'].update(config=f'import os\nos.mkdir({str(place / "ran")!r})\n', cfg='raise SystemExit')
    torch.save(content, 'bad.pth')
    assert 'resumed epoch: 1' in said('train.py', 'toy.py', '--resume', 'bad.pth')
    assert (place / 'work_dirs/toy/epoch_2.pth').exists()
    assert not (place / 'ran').exists()


def test_the_trap_works(place, plant):
    for variant in VARIANTS:
        proof = plant(variant)
        if variant == 'plain pickle':
            pickle.loads((place / 'bad.pth').read_bytes())
        else:
            torch.load(place / 'bad.pth', weights_only=False)
        assert proof.exists() == (variant != 'TorchScript')
        shutil.rmtree(proof, ignore_errors=True)


def test_downloads_do_not_run(place, plant, monkeypatch):
    proof = plant('zip')
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setenv('TORCH_HOME', str(place))
    cached = place / 'hub/checkpoints/bad.pth'
    cached.parent.mkdir(parents=True)
    shutil.copy(place / 'bad.pth', cached)
    address = 'https://example.invalid/bad.pth'
    with pytest.raises(compat.UnsafeCheckpoint, match=f'{address!r} holds more .* would call posix.system'):
        CheckpointLoader.load_checkpoint(address, 'cpu')
    assert not proof.exists()
    compat.trust_checkpoint(address)
    assert 'state_dict' in CheckpointLoader.load_checkpoint(address, 'cpu')
    assert proof.exists()


@pytest.mark.parametrize('way', ['test', 'publish_model'])
def test_code_runs_only_for_a_named_file_and_loudly(place, plant, said, way, monkeypatch):
    logged = []
    monkeypatch.setattr(loading, 'print_log', lambda text, logger, level: logged.append((level, text)))
    proof = plant('zip')
    shutil.copy('bad.pth', 'other.pth')
    message = said(*WAYS[way], '--trust-checkpoint', 'other.pth')
    assert not proof.exists()
    assert 'run its code by --trust-checkpoint and its name' in message
    assert logged == []
    said(*WAYS[way], '--trust-checkpoint', place / 'images/../bad.pth')
    assert proof.exists()
    loud = ("--trust-checkpoint: 'bad.pth' is loaded with all that it holds, and would call posix.system. ANY CODE "
            'IN IT RUNS NOW, with your rights.')
    assert logged == [(logging.WARNING, loud)]


def test_a_trusted_file_must_exist(place, said):
    message = said(*WAYS['publish_model'], '--trust-checkpoint', 'nowhere.pth')
    assert '--trust-checkpoint: no such file, nowhere.pth' in message


def test_a_good_file_is_loaded_quietly_though_trusted(place, said, monkeypatch):
    monkeypatch.setattr(loading, 'print_log', None)
    message = said('model_converters/publish_model.py', 'tiny.pth', 'out.pth', '--trust-checkpoint', 'tiny.pth')
    assert 'written' in message


@pytest.mark.parametrize('tool', sorted({tool for tool, *_ in WAYS.values()} - {'misc/check_checkpoint.py'}))
def test_every_tool_has_the_option(place, said, tool):
    assert '--trust-checkpoint FILE' in said(tool, '--help')


def onnx_file(path, transforms, **entries):
    """A file as export.py writes it, except for its graph, which does nothing."""
    pytest.importorskip('onnx')
    meta = dict(task='classification', scope='mmpretrain', classes=[], palette=[], pipeline=repr(transforms))
    write_onnx_stub(path, dict(pelk_mm=json.dumps({**meta, **entries})))


STRANGERS = {
    'a function': [dict(type='os.mkdir', path='ran')],
    'within another': [dict(type='RandomApply', transforms=[dict(type='os.mkdir', path='ran')])],
    'of a toolbox': [dict(type='mmengine.load', file='ran')],
    'by scope': [dict(type='mmengine.mkdir_or_exist', dir_name='ran')],
    'a module': [dict(type='antigravity')],
    'another scope': [dict(type='Resize', scale=4, _scope_='os')],
}


@pytest.mark.parametrize('pipeline', STRANGERS.values(), ids=STRANGERS)
def test_names_in_an_onnx_file_are_not_called(place, said, pipeline):
    onnx_file('bad.onnx', pipeline)
    message = said('image_demo.py', 'images', 'bad.onnx', '--out-dir', 'out')
    assert not (place / 'ran').exists()
    assert 'which is no registered transform, and is not called' in message
    assert 'antigravity' not in sys.modules


@pytest.mark.parametrize('entries', [dict(scope='os'), dict(scope=[]), dict(pipeline='__import__("os").mkdir("ran")'),
                                     dict(pipeline='[1]'), dict(pipeline='(' * 1000), dict(task='detection')])
def test_damaged_metadata_of_an_onnx_file(place, said, entries):
    onnx_file('bad.onnx', [], **entries)
    message = said('image_demo.py', 'images', 'bad.onnx', '--out-dir', 'out')
    assert not (place / 'ran').exists()
    assert 'ValueError: bad.onnx has damaged metadata of pelk_mm' in message


def test_an_onnx_file_of_registered_transforms_opens(place):
    onnx_file('good.onnx', [dict(type='LoadImageFromFile'), dict(type='mmpretrain.ResizeEdge', scale=4)])
    assert OnnxModel('good.onnx').outputs == ['logits']


@pytest.mark.parametrize('head', [
    dict(type='os.mkdir', path='ran'),
    dict(type='antigravity'),
    dict(type='LinearClsHead', loss=dict(type='mmengine.mkdir_or_exist', dir_name='ran')),
])
def test_a_head_that_an_onnx_file_names_is_not_called(place, head):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    onnx_file('bad.onnx', pipeline, model=repr(dict(type='ImageClassifier', backbone=dict(type='ReLU'), head=head)))
    model = OnnxModel('bad.onnx')
    with pytest.raises(ValueError, match='in its model, which is not registered here .* is not called'):
        model.classify(np.zeros((4, 4, 3), np.uint8))
    assert not (place / 'ran').exists()
    assert 'antigravity' not in sys.modules


def test_an_onnx_file_of_0_1_0_says_that_it_has_no_head(place):
    onnx_file('old.onnx', [dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    with pytest.raises(ValueError, match='does not hold the head that decides: export it again'):
        OnnxModel('old.onnx').classify(np.zeros((4, 4, 3), np.uint8))
