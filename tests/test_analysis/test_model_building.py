"""Models with the weights of a checkpoint, or with reproducible random ones."""

import pytest
import torch
from mmengine.config import Config

from pelk_mm.analysis import build_model, build_with_weights

BACKBONE = dict(type='pelk_mm.PeLK', arch=dict(depths=(1, 1), channels=(8, 8), kernel_sizes=(7, 5)))


def config(**backbone):
    model = dict(type='mmpretrain.ImageClassifier', backbone=dict(BACKBONE, **backbone))
    return Config(dict(default_scope='mmpretrain', custom_imports=dict(imports=['pelk_mm.models']), model=model))


def save(model, path, drop=()):
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(tuple(drop))}
    torch.save(dict(state_dict=state), path)
    return str(path)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.backbone.parameters()])


def test_random_weights_depend_on_the_seed_only():
    generator = torch.get_rng_state()
    first, again, other = (weights(build_with_weights(config(), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize('backbone', ['pelk_mm.PeLK', 'pelk_mm.SLaK'])
@pytest.mark.parametrize('deploy', [False, True])
def test_on_meta_shapes_are_those_of_the_real_model(backbone, deploy):
    """Also of the deployed form, whose constructor folds norms."""
    cfg = config(type=backbone, deploy=deploy, arch=dict(BACKBONE['arch'], kernel_sizes=(9, 7)))
    meta, real = (build_model(cfg, device).state_dict() for device in ('meta', 'cpu'))
    assert {name: value.shape for name, value in meta.items()} == {name: value.shape for name, value in real.items()}
    assert all(value.is_meta for value in meta.values())


def test_checkpoints_named_by_the_config_are_not_loaded():
    cfg = config(init_cfg=dict(type='Pretrained', checkpoint='missing.pth'))
    assert torch.equal(weights(build_with_weights(cfg)), weights(build_with_weights(config())))
    assert cfg.model.backbone.init_cfg.checkpoint == 'missing.pth'


def test_a_checkpoint_is_loaded_and_must_have_the_complete_backbone(tmp_path):
    trained = build_with_weights(config(), seed=3)
    path = save(trained, tmp_path / 'a.pth')
    assert torch.equal(weights(build_with_weights(config(), path)), weights(trained))
    path = save(trained, tmp_path / 'a.pth', drop=['backbone.stages.1.blocks.0.pointwise_conv1'])
    count = len(trained.backbone.state_dict())
    with pytest.raises(ValueError, match=rf'has {count - 2} of {count}, and not, for example, '
                       r'stages\.1\.blocks\.0\.pointwise_conv1\.(weight|bias)'):
        build_with_weights(config(), path)


def test_a_config_without_a_model_is_refused():
    with pytest.raises(ValueError, match='cfg must have a model'):
        build_with_weights(Config(dict(lr=1)))
