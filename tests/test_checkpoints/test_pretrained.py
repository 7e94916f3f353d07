"""Pretrained backbones are found in a checkpoint, counted, loaded last, or refused."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from pelk_mm.engine import PretrainedBackbone
from pelk_mm.models import PeLK
from pelk_mm.testing.random_weights import randomise

ARCH = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8), kernel_sizes=(9, 9, 9, 9))


def dense_backbone(**init_cfg):
    """A backbone for dense prediction, which has three norms more than a classifier's."""
    init_cfg = dict(type='pelk_mm.PretrainedBackbone', **init_cfg) if init_cfg else None
    return PeLK(ARCH, out_indices=(0, 1, 2, 3), gap_before_final_norm=False, init_cfg=init_cfg)


@pytest.fixture(scope='module')
def classifier():
    """Parameters of a classifier: a backbone that was trained, so that nothing equals its initial value, and a head."""
    state = {f'backbone.{key}': value for key, value in randomise(PeLK(ARCH)).state_dict().items()}
    return dict(state, **{'head.fc.weight': torch.rand(3, 8), 'head.fc.bias': torch.rand(3)})


@pytest.fixture
def save(tmp_path):

    def _save(content, name='checkpoint.pth'):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return _save


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_instance('test_pretrained', logger_name='test_pretrained')
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield lambda: '\n'.join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


def assert_loaded(backbone, state, prefix='backbone.'):
    for key, value in backbone.state_dict().items():
        if prefix + key in state:
            assert torch.equal(value, state[prefix + key]), key


@pytest.mark.parametrize('prefix', ['backbone.', 'module.backbone.', '', 'image_encoder.net.'])
@pytest.mark.parametrize('entry', ['state_dict', 'model', None])
def test_prefix_is_found(classifier, save, log, prefix, entry):
    state = {key.replace('backbone.', prefix, 1): value for key, value in classifier.items()}
    checkpoint = save(state if entry is None else {entry: state, 'meta': dict(epoch=1)})
    backbone = dense_backbone(checkpoint=checkpoint)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert_loaded(backbone, state, prefix)
    own = len(before)
    assert f'{own - 6} of {own} keys loaded' in log()
    assert f'prefix {prefix!r}' in log()
    for stage in range(3):
        assert torch.equal(backbone.state_dict()[f'norm{stage}.weight'], before[f'norm{stage}.weight'])
    assert '6 keys are not in the checkpoint, left as initialised: norm0.bias, norm0.weight, norm1' in log()
    if prefix:
        assert '2 keys lie outside of it' in log()
    else:
        assert '2 keys are in the checkpoint, but not in the model, and not used: head.fc.bias, head.fc.weight' in log()


def test_loaded_weights_have_the_last_word(classifier, save):
    """A child's own initialisation, and the model's, come before."""
    backbone = dense_backbone(checkpoint=save(classifier))
    for block in (stage.blocks[0] for stage in backbone.stages):
        block.init_cfg = dict(type='Constant', layer='Linear', val=7.0)
    backbone.init_weights()
    assert_loaded(backbone, classifier)


def test_training_from_scratch_is_logged(log):
    backbone = dense_backbone(checkpoint=None)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert 'PeLK trains from scratch' in log()
    assert 'model.backbone.init_cfg.checkpoint=PATH' in log()


def refused(error, match, **init_cfg):
    backbone = dense_backbone(**init_cfg)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(error, match=match):
        backbone.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_missing_file_is_named(tmp_path):
    checkpoint = str(tmp_path / 'nowhere.pth')
    refused(FileNotFoundError, 'nowhere.pth.*does not exist. Train the classifier', checkpoint=checkpoint)


def test_a_checkpoint_of_another_model_is_refused(classifier, save):
    checkpoint = save(dict(state_dict={'conv1.weight': torch.rand(1), 'fc.bias': torch.rand(1)}))
    refused(ValueError, r"none of the \d+ keys of PeLK.*no 'downsample_layers.0.0.weight'.*conv1.weight, fc.bias",
            checkpoint=checkpoint)
    refused(ValueError, "none of the .* prefix 'neck.'", checkpoint=save(classifier), prefix='neck.')
    refused(ValueError, 'holds no tensors', checkpoint=save(dict(state_dict={})))
    checkpoint = save(dict(state_dict={}))
    refused(ValueError, r"key must be an entry.*got 'ema'.*\['state_dict'\]", checkpoint=checkpoint, key='ema')


def test_two_backbones_in_one_checkpoint_need_a_prefix(classifier, save):
    teacher = {key.replace('backbone', 'teacher'): value + 1 for key, value in classifier.items()}
    checkpoint = save({**classifier, **teacher})
    refused(ValueError, "'backbone.' and 'teacher.': say by init_cfg.prefix", checkpoint=checkpoint)
    backbone = dense_backbone(checkpoint=checkpoint, prefix='teacher.')
    backbone.init_weights()
    assert_loaded(backbone, teacher, 'teacher.')


def test_other_kernels_are_refused_or_skipped(save, log):
    other = PeLK(dict(ARCH, kernel_sizes=(13, 9, 9, 9)))
    state = other.state_dict()
    checkpoint = save(state)
    message = r'another variant.*2 of \d+ tensors.*\(3, 1, 9, 9\) in the checkpoint, \(3, 1, 7, 7\) in the model'
    refused(ValueError, message, checkpoint=checkpoint)
    backbone = dense_backbone(checkpoint=checkpoint, skip_mismatched=True)
    backbone.init_weights()
    theta, embedding = 'stages.0.blocks.0.mixer.mixer.convs.large.weight', 'stages.0.position_embedding.weight'
    assert_loaded(backbone, {key: value for key, value in state.items() if key not in (theta, embedding)}, '')
    assert f'2 tensors have other shapes and are left as initialised: {theta}' in log()
    assert embedding in log()


def test_the_other_form_is_refused(save):
    deployed = PeLK(ARCH).eval()
    deployed.switch_to_deploy()
    refused(ValueError, 'has the deployed form of PeLK.*4 convolutions.*large.bias: load the checkpoint that training',
            checkpoint=save(deployed.state_dict()))
    with pytest.raises(ValueError, match='has the training form of PeLK.*call switch_to_deploy'):
        PretrainedBackbone(save(PeLK(ARCH).state_dict()))(deployed)
    copy = PeLK(ARCH).eval()
    copy.switch_to_deploy()
    PretrainedBackbone(save(deployed.state_dict()))(copy)
    assert_loaded(copy, deployed.state_dict(), '')


def test_any_module_can_be_loaded(save):
    """Not only a backbone."""
    source = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    target = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    PretrainedBackbone(save({f'features.{key}': value for key, value in source.state_dict().items()}))(target)
    assert_loaded(target, source.state_dict(), '')
