"""Merged models: equal outputs, fewer parts, a config that builds them; and comparisons that see what is not equal."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from torch import nn

from pelk_mm.analysis import build_model
from pelk_mm.deploy import Detections, Difference, EvalImages, compare, deploy
from pelk_mm.layers import DepthwiseBranches, KernelPositionEmbedding
from pelk_mm.testing.tiny_models import build_tiny_model, tiny_config, write_pictures

# Merged layers of the backbone's four blocks, and convolutions with a BatchNorm in the other parts.
LAYERS = dict(
    classification=4, segmentation=4 + 4 + 1 + 3 + 3 + 1, detection=4 + 4 + 4 + 4, one_stage_detection=4 + 4 + 4)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('images'))


@pytest.mark.parametrize('task', LAYERS)
def test_outputs_stay_equal_and_nothing_is_left_to_merge(task, images):
    cfg = tiny_config(task)
    model = build_tiny_model(cfg)
    before, text = copy.deepcopy(model.state_dict()), cfg.pretty_text
    deployment = deploy(model, cfg)
    assert len(deployment.layers) == LAYERS[task]
    modules = list(deployment.model.modules())
    assert not any(isinstance(module, (nn.BatchNorm2d, KernelPositionEmbedding)) for module in modules)
    assert all(list(module.convs) == ['large'] for module in modules if isinstance(module, DepthwiseBranches))
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


def test_parts_whose_norms_are_needed_elsewhere_stay_whole():
    """A BatchNorm before its convolution does not fold, and then the part keeps all of its norms."""
    cfg = tiny_config('segmentation')
    model = build_tiny_model(cfg)
    module = model.decode_head.bottleneck
    module.order = ('act', 'norm', 'conv')
    assert isinstance(module, ConvModule)
    deployment = deploy(model, cfg)
    assert [layer for layer in deployment.layers if not layer.startswith('backbone')] == []
    assert deployment.cfg.model.decode_head.norm_cfg.type == 'BN'


def test_backbones_of_others():
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


def test_what_cannot_be_merged_says_so():
    cfg = tiny_config('classification')
    cfg.model.backbone = dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 16]))
    with pytest.raises(ValueError, match='nothing .* its ConvNeXt has no switch_to_deploy'):
        deploy(build_tiny_model(cfg), cfg)
    with pytest.raises(ValueError, match='must have a backbone, got Linear'):
        deploy(nn.Linear(1, 1), cfg)


def test_errors_are_those_of_the_tensors():
    difference = Difference('layer', True)
    difference.add([torch.tensor([1., -4.])], [torch.tensor([1.5, -4.])])
    difference.add([torch.tensor([2., 2.])], [torch.tensor([2., 1.])])
    assert (difference.maximum, difference.mean, difference.magnitude) == (1.0, 0.375, 4.0)
    assert difference.relative == 0.25
    for wrong in ([torch.tensor([float('nan'), 1.])], [torch.zeros(3)], []):
        broken = Difference('layer', True)
        broken.add([torch.zeros(2)], wrong)
        assert broken.relative == float('inf')


def test_detections_match_by_class_and_place():
    from mmengine.structures import InstanceData
    before = InstanceData(
        bboxes=torch.tensor([[0., 0, 10, 10], [20, 20, 40, 40], [5, 5, 9, 9]]),
        labels=torch.tensor([1, 2, 3]),
        scores=torch.tensor([0.9, 0.8, 0.7]))
    after = InstanceData(
        bboxes=torch.tensor([[20., 20, 40, 40.5], [0, 0, 10, 10]]),
        labels=torch.tensor([2, 0]),
        scores=torch.tensor([0.75, 0.9]))
    detections = Detections()
    detections.add(before, after)
    assert (detections.before, detections.after, detections.matched) == (3, 2, 1)
    assert detections.score_error == pytest.approx(0.05)


def test_images_of_a_folder_are_sorted_and_counted(images, tmp_path):
    cfg = tiny_config('segmentation')
    assert len(EvalImages(cfg, 8, images)) == 3
    batch = next(EvalImages(cfg, 1, images).batches())
    assert batch['inputs'][0].shape == (3, 64, 64)
    with pytest.raises(FileNotFoundError, match='has none of'):
        EvalImages(cfg, 1, tmp_path)
    with pytest.raises(FileNotFoundError, match='no such folder'):
        EvalImages(cfg, 1, tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='count must be at least 1'):
        EvalImages(cfg, 0, images)
