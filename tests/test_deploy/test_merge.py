"""Merged models: equal outputs, fewer parts, and files that are complete or absent."""

import copy
import os

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from torch import nn

from pelk_mm.analysis import build_model
from pelk_mm.checkpoints.entries import load_weights_and_meta
from pelk_mm.checkpoints.publish import publish_file
from pelk_mm.deploy import EvalImages, compare, deploy, load_trained, save_deployment
from pelk_mm.layers import KernelPositionEmbedding, ReparamDepthwiseConv
from pelk_mm.testing.tiny_models import build_tiny_model, tiny_config, write_images

# Merged layers of the backbone's four blocks, and convolutions with a BatchNorm in the other parts.
LAYERS = dict(
    classification=4, segmentation=4 + 2 + 1 + 3 + 3 + 1, detection=4 + 4 + 4 + 4, one_stage_detection=4 + 4 + 4)


ONE = torch.ones(1)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.mark.parametrize('task', LAYERS)
def test_outputs_stay_equal_and_nothing_is_left_to_merge(task, images):
    cfg = tiny_config(task)
    model = build_tiny_model(cfg)
    before, text = copy.deepcopy(model.state_dict()), cfg.pretty_text
    deployment = deploy(model, cfg)
    assert len(deployment.layers) == LAYERS[task]
    modules = list(deployment.model.modules())
    assert not any(isinstance(module, (nn.BatchNorm2d, KernelPositionEmbedding)) for module in modules)
    assert all(list(module.convs) == ['large'] for module in modules if isinstance(module, ReparamDepthwiseConv))
    assert getattr(deployment.model, 'auxiliary_head', None) is None

    batches = EvalImages(cfg, 2, images).batches()
    differences, predictions = compare(model, deployment.model, deployment.layers, batches)
    names = [difference.name for difference in differences]
    assert set(deployment.layers) | {'backbone.stages.2', 'backbone'} <= set(names)
    assert ('output' in names) == (task != 'detection')
    assert ('roi_head.bbox_head' in names) == (task == 'detection')
    assert max(difference.relative for difference in differences) < 1e-5
    assert min(difference.magnitude for difference in differences) > 0.1
    if 'detection' in task:
        detections = predictions.detections
        assert (detections.before, detections.after, detections.matched) == (20, 20, 20)
        assert detections.score_error < 1e-5
    else:
        # Two images of four classes, or of as many pixels as their files have.
        assert (predictions.decisions, predictions.equal) == ((8, 8) if task == 'classification' else (10240, 10240))
        assert predictions.error < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert cfg.pretty_text == text


@pytest.mark.parametrize('task', LAYERS)
def test_the_config_builds_the_deployed_form(task, tmp_path):
    deployment = deploy(build_tiny_model(cfg := tiny_config(task)), cfg)
    deployment.cfg.dump(str(tmp_path / 'deployed.py'))
    rebuilt = build_model(Config.fromfile(tmp_path / 'deployed.py'), 'cpu')
    rebuilt.load_state_dict(deployment.model.state_dict(), strict=True)
    assert 'custom_hooks' in cfg
    assert 'custom_hooks' not in deployment.cfg
    assert deployment.cfg.test_dataloader == cfg.test_dataloader
    with pytest.raises(ValueError, match='builds the deployed form already'):
        deploy(deployment.model, deployment.cfg)


def test_norms_that_do_not_fold_stay():
    cfg = tiny_config('one_stage_detection')
    cfg.model.neck.norm_cfg = dict(type='GN', num_groups=2)
    model = build_tiny_model(cfg)
    deployment = deploy(model, cfg)
    assert [layer for layer in deployment.layers if not layer.startswith('backbone')] == []
    assert sum(isinstance(module, nn.GroupNorm) for module in deployment.model.neck.modules()) == 8
    assert deployment.cfg.model.neck.norm_cfg == dict(type='GN', num_groups=2)


def test_parts_whose_norms_are_needed_elsewhere_stay_unmerged():
    """A BatchNorm before its convolution does not fold, and then the part keeps all of its norms."""
    cfg = tiny_config('segmentation')
    model = build_tiny_model(cfg)
    module = model.decode_head.bottleneck
    module.order = ('act', 'norm', 'conv')
    assert isinstance(module, ConvModule)
    deployment = deploy(model, cfg)
    assert [layer for layer in deployment.layers if not layer.startswith('backbone')] == []
    assert deployment.cfg.model.decode_head.norm_cfg.type == 'BN'


def test_backbones_of_mmpretrain_merge():
    cfg = tiny_config('classification')
    arch = dict(num_blocks=[1, 1, 1, 1], width_factor=[0.125] * 3 + [0.03125], group_layer_map=None, se_cfg=None)
    cfg.model.backbone = dict(type='RepVGG', arch=arch)
    cfg.model.neck = dict(type='GlobalAveragePooling')
    model = build_tiny_model(cfg)
    deployment = deploy(model, cfg)
    assert deployment.layers
    assert all(layer.startswith('backbone.') for layer in deployment.layers)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(deployment.model(x, mode='tensor'), model(x, mode='tensor'), rtol=1e-4, atol=1e-4)


def test_models_with_nothing_to_merge_are_refused():
    cfg = tiny_config('classification')
    cfg.model.backbone = dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 16]))
    with pytest.raises(ValueError, match='nothing .* its ConvNeXt has no switch_to_deploy'):
        deploy(build_tiny_model(cfg), cfg)
    with pytest.raises(ValueError, match='must have a backbone, got Linear'):
        deploy(nn.Linear(1, 1), cfg)


@pytest.fixture
def cfg():
    return tiny_config('classification')


@pytest.mark.parametrize(('content', 'message'), [
    ([ONE], 'must hold a dict of tensors, .* got a list'),
    (dict(model=dict(a=ONE)), r"must be a checkpoint with a state_dict, it has \['model'\]"),
    (dict(state_dict=[ONE]), 'must be a checkpoint with a state_dict'),
    (dict(state_dict={1: ONE}), 'must have only names in its state_dict, got 1'),
    (dict(state_dict={}, meta='digits'), 'must have a dict as its meta data, got a str'),
])
def test_files_that_hold_no_trained_model_are_named(content, message, cfg, tmp_path):
    path = str(tmp_path / 'odd.pth')
    torch.save(content, path)
    for read in (lambda: load_trained(cfg, path), lambda: publish_file(path, str(tmp_path / 'out.pth'))):
        with pytest.raises(ValueError, match=f'odd.pth {message}'):
            read()
    assert os.listdir(tmp_path) == ['odd.pth']


@pytest.mark.parametrize('value', [ONE, 1, None, [ONE]])
def test_weights_of_another_model_are_refused(value, cfg, tmp_path):
    torch.save(dict(state_dict={'head.fc.bias': value}), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth does not fit the config'):
        load_trained(cfg, str(tmp_path / 'other.pth'))


@pytest.mark.parametrize('meta', [{}, dict(meta=None), dict(meta={}), dict(meta=dict(epoch=3))])
def test_a_model_goes_through_files_with_meta_data_and_without(meta, cfg, tmp_path):
    model = build_tiny_model(cfg)
    torch.save(dict(state_dict=model.state_dict(), optimizer={}, **meta), tmp_path / 'trained.pth')
    weights, found, others = load_weights_and_meta(str(tmp_path / 'trained.pth'))
    # By the versions in it modules know what they have to translate.
    assert weights._metadata == model.state_dict()._metadata
    assert (found, others) == (meta.get('meta') or {}, ['optimizer'])
    model, found = load_trained(cfg, str(tmp_path / 'trained.pth'))
    deployment = deploy(model, cfg)
    save_deployment(deployment, found, tmp_path / 'new' / 'deployed.pth')
    saved = torch.load(tmp_path / 'new' / 'deployed.pth', weights_only=True)
    assert saved['meta'].get('epoch') == found.get('epoch')
    assert (tmp_path / 'new' / 'deployed.py').read_text(encoding='utf-8') == saved['meta']['cfg']
    assert all(torch.equal(value, saved['state_dict'][name]) for name, value in deployment.model.state_dict().items())
