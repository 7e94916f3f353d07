"""Diagnosis of a checkpoint: every planted error is found, and the fix that it names works."""

import re
import shlex

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from pelk_mm.analysis.model_building import build_model
from pelk_mm.diagnostics.checkpoint import examine_checkpoint
from pelk_mm.diagnostics.finding import has_error
from pelk_mm.engine.sparsity import pack_mask
from pelk_mm.testing.random_weights import randomise

BACKBONE = dict(type='pelk_mm.PeLK', arch=dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 16), kernel_sizes=(9, 9, 9, 9)))
CONFIG = Config(
    dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier', backbone=BACKBONE, head=dict(type='LinearClsHead', num_classes=3, in_channels=16))))
SLAK = Config(CONFIG.to_dict())
SLAK.model.backbone.type = 'pelk_mm.SLaK'

# The content of a tensor, to find it in the file.
FILLED = bytearray(range(64))


@pytest.fixture(scope='module')
def weights():
    """Of the classifier of ``CONFIG``, none of them zero."""
    return randomise(build_model(CONFIG, 'cpu')).state_dict()


@pytest.fixture
def save(tmp_path):

    def _save(content, **options):
        torch.save(content, tmp_path / 'model.pth', **options)
        return tmp_path / 'model.pth'

    return _save


def only(findings, subject):
    """The one finding about a subject."""
    finding, = (finding for finding in findings if finding.subject == subject)
    return finding


@pytest.fixture
def run_fix(run_tool, tmp_path):
    """Runs the first line of a fix, a command, as the shell would split it; returns the file that it makes."""

    def run(fix):
        python, *arguments = shlex.split(fix.splitlines()[0])
        assert python == 'python'
        if arguments[0] == '-c':
            exec(arguments[1], {})
        else:
            folder, _, name = arguments[0].partition('/')
            assert folder == 'tools'
            code, printed = run_tool(name, *arguments[1:])
            assert code == 0, printed
        made, = (file for file in tmp_path.iterdir() if file.name != 'model.pth')
        return made

    return run


def test_everything_in_a_good_checkpoint_is_described(save, weights):
    masks = {'backbone.stages.0.blocks.0.pointwise_conv1.weight': None}
    name, = masks
    mask = torch.zeros(weights[name].shape, dtype=torch.bool)
    mask.view(-1)[:mask.numel() // 4] = True
    state = dict(weights, **{name: weights[name] * mask})
    history = HistoryBuffer(log_history=np.array([1.0, 2.0]), count_history=np.array([1, 1]))
    path = save(
        dict(
            meta=dict(
                epoch=7, iter=70, seed=5, experiment_name='fine', cfg='model = ...', dataset_meta=dict(classes='abc')),
            state_dict=state,
            ema_state_dict=weights,
            optimizer=dict(state={}, param_groups=[]),
            message_hub=dict(log_scalars={'train/loss': history}),
            dynamic_sparsity=dict(
                step=70, prune_rate=0.25, masks={name: dict(bits=pack_mask(mask), shape=list(mask.shape))})))
    findings = examine_checkpoint(path, CONFIG)
    assert not has_error(findings)
    assert only(findings, 'meta').text == 'experiment_name fine, epoch 7, iter 70, seed 5, 3 classes, with its config'
    values = sum(value.numel() for value in weights.values())
    assert f'{len(weights)} tensors of {values / 1e6:.3f} M values in state_dict' in only(findings, 'weights').text
    assert 'state_dict holds the averaged weights' in only(findings, 'EMA').text
    assert 'can be resumed' in only(findings, 'optimizer').text
    sparse = sum(value.numel() for value in weights.values() if value.ndim in (2, 4))
    density = only(findings, 'density').text
    assert density.startswith(f'{1 - (mask.numel() - mask.sum().item()) / sparse:.4f} of')
    assert '1 masks of DynamicSparsityHook, density 0.2500 within them, at optimiser step 70, prune' in density
    assert only(findings, 'model').text == (
        f'100.0 % of the values of the model are in the checkpoint, {len(weights)} of {len(weights)} tensors '
        '(backbone 100.0 %, head 100.0 %)')


def changed(name, offset=0):
    """Flips the last bit of a byte, counted from a signature of the zip format."""

    def change(content):
        content = bytearray(content)
        content[content.index(name) + offset] ^= 1
        return content

    return change


AGAIN = 'Copy or download it again'
CUT = {share: lambda content, share=share: content[:int(share * len(content))] for share in (0.01, 0.5, 0.99)}
BROKEN = [
    *((change, zipped, 'is truncated', AGAIN) for change in CUT.values() for zipped in (True, False)),
    (lambda content: b'', True, 'is empty', AGAIN),
    (changed(bytes(FILLED)), True, r'is damaged: model/data/\d+ in it has a wrong checksum$', AGAIN),
    # The flags of the first file in the table of contents: the bit that stands for encryption.
    (changed(b'PK\x01\x02', 8), True, r'model.pth is damaged: a header in it is wrong \(', AGAIN),
    (lambda content: b'version https://git-lfs.github.com/spec/v1\noid', True, 'pointer of Git LFS', 'git lfs pull'),
    (lambda content: b'<!DOCTYPE html>\n<p>404', True, 'error page', AGAIN),
    (lambda content: b'\x00\x01 something else', True, 'not a checkpoint of PyTorch', 'that torch.save wrote'),
]


@pytest.mark.parametrize(('change', 'zipped', 'text', 'fix'), BROKEN)
def test_broken_files_are_named_for_what_they_are(save, weights, change, zipped, text, fix):
    state = dict(weights, filled=torch.frombuffer(FILLED, dtype=torch.uint8))
    path = save(dict(state_dict=state), _use_new_zipfile_serialization=zipped)
    path.write_bytes(change(path.read_bytes()))
    finding, = examine_checkpoint(path)
    assert finding.level == 'error'
    assert re.search(text, finding.text)
    assert fix in finding.fix


@pytest.mark.parametrize(('prefix', 'old', 'new'), [('net.backbone.', 'net.', ''),
                                                    ('encoder.', 'encoder.', 'backbone.'), ('', '', 'backbone.')])
def test_a_wrong_prefix_is_named_with_a_command_that_fixes_it(save, weights, run_fix, prefix, old, new):
    path = save(dict(state_dict={name.replace('backbone.', prefix, 1): value for name, value in weights.items()}))
    findings = examine_checkpoint(path, CONFIG)
    finding = only(findings, 'names')
    assert finding.level == 'error'
    assert f'the prefix is {old!r}, the model has {new!r}' in finding.text
    fixed = examine_checkpoint(run_fix(finding.fix), CONFIG)
    assert not has_error(fixed)
    # The head too, which had its right name.
    assert f'100.0 % of the values of the model are in the checkpoint, {len(weights)} of {len(weights)}' in only(
        fixed, 'model').text
    assert not [finding for finding in fixed if finding.subject in ('missing', 'not used')]


def test_a_smaller_variant_is_not_taken_for_another_prefix(save, weights):
    """Though the names of its third stage are those of the first, and some shapes as well."""
    larger = Config(CONFIG.to_dict())
    larger.model.backbone.arch.update(depths=(3, 1, 1, 1), channels=(16, 16, 16, 16))
    findings = examine_checkpoint(save(dict(state_dict=weights)), larger)
    assert 'names' not in [finding.subject for finding in findings]
    assert 'take the config that it was trained with' in only(findings, 'shapes').fix


def test_a_wrapped_model_is_fine(save, weights):
    path = save(dict(state_dict={f'module.{name}': value for name, value in weights.items()}))
    assert not has_error(examine_checkpoint(path, CONFIG))


@pytest.mark.parametrize('key', ['ema_state_dict', 'model_ema'])
def test_only_averaged_weights_are_an_error(save, weights, run_fix, key):
    path = save({key: dict({f'module.{name}': value for name, value in weights.items()}, steps=torch.tensor(9))})
    findings = examine_checkpoint(path, CONFIG)
    finding = only(findings, 'EMA')
    assert finding.level == 'error'
    assert f'only averaged weights are there, in {key}' in finding.text
    assert f'key={key!r}' in finding.fix
    assert not has_error(examine_checkpoint(run_fix(finding.fix), CONFIG))


def test_names_of_a_release_are_recognised(save, run_fix):
    model = build_model(SLAK, 'cpu').state_dict()
    released = {}
    for name, value in model.items():
        name = re.sub(r'^backbone\.(downsample_layers)', r'\1', name)
        name = re.sub(r'^backbone\.stages\.(\d+)\.blocks', r'stages.\1', name)
        name = re.sub(r'^backbone\.norm3', 'norm', name).replace('head.fc', 'head').replace('pointwise_conv', 'pwconv')
        for branch, ours in dict(LoRA1='vertical', LoRA2='horizontal', small_conv='small').items():
            name = name.replace(f'mixer.convs.{ours}', f'large_kernel.{branch}.conv')
            name = name.replace(f'mixer.norms.{ours}', f'large_kernel.{branch}.bn')
        released[name] = value
    finding = only(examine_checkpoint(save(dict(model=released)), SLAK), 'names')
    assert "the names are those of SLaK's release" in finding.text
    assert f'100.0 % of the values of the model are in the checkpoint, {len(model)} of {len(model)}' in finding.text
    assert finding.fix.startswith('python tools/model_converters/slak_to_pelk_mm.py ')
    assert not has_error(examine_checkpoint(run_fix(finding.fix), SLAK))


def test_shapes_of_another_variant_are_listed(save, weights):
    state = dict(weights, **{'head.fc.weight': torch.rand(7, 16), 'head.fc.bias': torch.rand(7)})
    finding = only(examine_checkpoint(save(dict(state_dict=state)), CONFIG), 'shapes')
    assert '2 tensors have other shapes: head.fc.weight (7, 16) in the checkpoint, (3, 16) in the model' in finding.text
    assert 'num_classes' in finding.fix


def test_one_renamed_tensor_is_guessed(save, weights):
    state = dict(weights)
    state['backbone.norm3.gain'] = state.pop('backbone.norm3.weight')
    finding = only(examine_checkpoint(save(dict(state_dict=state)), CONFIG), 'missing')
    assert finding.fix == 'Likely renamed: backbone.norm3.gain -> backbone.norm3.weight'
    findings = examine_checkpoint(save(dict(state_dict=weights)), SLAK)
    assert 'num_batches_tracked ->' not in only(findings, 'missing').fix


@pytest.mark.parametrize('classes', [3, 5])
def test_the_other_form_is_recognised(save, weights, classes):
    """Also where the head is another one."""
    model = build_model(CONFIG, 'cpu')
    model.backbone.switch_to_deploy()
    deployed, config = model.state_dict(), Config(CONFIG.to_dict())
    config.model.head.num_classes = classes
    finding = only(examine_checkpoint(save(dict(state_dict=deployed)), config), 'form')
    assert finding.level == 'error'
    assert 'holds the deployed form' in finding.text
    config.model.backbone.deploy = True
    assert 'holds the training form' in only(examine_checkpoint(save(dict(state_dict=weights)), config), 'form').text


def test_a_pretrained_backbone_is_worth_a_note(save, weights):
    state = {name: value for name, value in weights.items() if not name.startswith('head.')}
    findings = examine_checkpoint(save(dict(state_dict=state)), CONFIG)
    assert not has_error(findings)
    assert 'init_cfg.checkpoint' in only(findings, 'pretrained').fix


def test_non_finite_values_and_misfit_masks_are_errors(save, weights):
    name = 'backbone.stages.0.blocks.0.pointwise_conv1.weight'
    mask = torch.zeros(weights[name].shape, dtype=torch.bool)
    state = dict(weights, **{'head.fc.bias': torch.tensor([0, float('nan'), 0])})
    sparsity = dict(step=1, prune_rate=0.1, masks={name: dict(bits=pack_mask(mask), shape=list(mask.shape))})
    findings = examine_checkpoint(save(dict(state_dict=state, dynamic_sparsity=sparsity)))
    assert '1 tensors hold NaN or infinity: head.fc.bias' in only(findings, 'values').text
    assert f'1 masks do not fit their weights, which are missing or not zero where they are dead: {name}' == only(
        findings, 'masks').text


def test_the_tool_prints_findings_and_exits_with_1_on_errors(save, weights, tmp_path, run_tool):
    path = save(dict(state_dict=weights))
    config = tmp_path / 'config.py'
    CONFIG.dump(config)
    tool = 'misc/check_checkpoint.py'
    code, printed = run_tool(tool, path, config)
    assert code == 0
    assert '100.0 % of the values' in printed
    code, printed = run_tool(tool, path, config, '--cfg-options', 'model.head.num_classes=4')
    assert code == 1
    assert 'ERROR shapes' in printed
    with pytest.raises(FileNotFoundError, match='checkpoint: no such file'):
        run_tool(tool, tmp_path / 'nothing.pth')
