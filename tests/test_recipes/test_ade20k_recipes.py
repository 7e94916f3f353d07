"""ADE20K: configs that docs/recipes.md does not list have the values of one that it lists; and which weights decay.

The page has every value of the listed ones beside that of its source, see test_recipe_table.py.
"""

from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pelk_mm.analysis import build_model

from ..helpers.config_tree import ROOT, load, optimizer_of

RECIPES = yaml.safe_load((ROOT / 'docs/recipes.yml').read_text(encoding='utf-8'))['recipes']
LISTED = {path for recipe in RECIPES.values() for path in recipe['configs'].values()}
UNLISTED = sorted({str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*_ade20k-512x512.py')} - LISTED)
PELK = 'configs/ade20k/pelk-{}_ade20k-512x512.py'
FULL, SHORT = PELK.format('tiny_upernet_8xb2-160k'), PELK.format('tiny_upernet_8xb4-80k')


def layer_decay_of(cfg: Config) -> float | None:
    paramwise = cfg.optim_wrapper.paramwise_cfg
    return paramwise.get('layer_decay_rate', paramwise.get('decay_rate'))


@pytest.mark.parametrize('path', UNLISTED, ids=lambda path: Path(path).stem)
def test_values_are_those_of_a_listed_config(path):
    """Of PeLK's of the same size and length. SLaK's keep their zeros, too, except in ablations, as in its 80k file."""
    size = next(size for size in ('tiny', 'small', 'base') if size in path)
    cfg, listed = load(path), load(SHORT if '8xb4-80k' in path else PELK.format(f'{size}_upernet_8xb2-160k'))
    for key in ('param_scheduler', 'train_cfg', 'auto_scale_lr', 'train_dataloader', 'test_dataloader'):
        assert cfg[key] == listed[key], key
    for key in ('type', 'lr', 'betas', 'weight_decay'):
        assert cfg.optim_wrapper.optimizer[key] == listed.optim_wrapper.optimizer[key], key
    assert layer_decay_of(cfg) == layer_decay_of(listed)
    for key in ('test_cfg', 'data_preprocessor', 'pretrained'):
        assert cfg.model[key] == listed.model[key], key
    assert cfg.model.backbone.drop_path_rate == listed.model.backbone.drop_path_rate
    assert cfg.model.backbone.get('layer_scale_init_value', 1.0) == 1.0
    assert cfg.model.auxiliary_head.loss_decode == listed.model.auxiliary_head.loss_decode
    hooks = [hook for hook in cfg.get('custom_hooks', []) if 'Sparsity' in hook.type]
    assert [hook.init for hook in hooks] == ['zeros'] * ('/slak-' in path and '160k' in path)


@pytest.mark.parametrize(('path', 'flat_decay'), [
    (FULL, 0.0),
    (SHORT, 0.05),
    ('configs/ablations/fig2_kernel_size/stripe-7-tiny_upernet_8xb4-80k_ade20k-512x512.py', 0.05),
    ('configs/baselines/ade20k/replknet-31b_upernet_8xb4-160k_ade20k-512x512.py', 0.05),
])
def test_which_parameters_decay(path, flat_decay):
    """Norms never decay, nor does the embedding; biases and layer scale do in some recipes."""
    cfg = load(path)
    model = build_model(cfg)
    groups = optimizer_of(cfg, model).param_groups
    decays = {id(param): group['weight_decay'] for group in groups for param in group['params']}
    norms = {
        id(param)
        for module in model.modules() if isinstance(module, (nn.LayerNorm, _BatchNorm)) for param in module.parameters()
    }
    flat = {id(param) for param in model.parameters() if param.ndim == 1} - norms
    embeddings = {id(param) for key, param in model.named_parameters() if key.endswith('position_embedding.weight')}
    assert len(embeddings) == (4 if '/pelk-' in path else 0)
    assert len(norms) > 40
    assert len(flat) > 1
    assert {decays[key] for key in flat} == {flat_decay}
    assert {decays[key] for key in norms | embeddings} == {0.0}
    assert {decays[key] for key in decays.keys() - norms - flat - embeddings} == {0.05}


def test_the_short_recipe_has_the_images_of_the_full_one():
    short, full = load(SHORT), load(FULL)
    assert short.train_dataloader.dataset == full.train_dataloader.dataset
    assert short.test_dataloader == full.test_dataloader
    for key in ('test_cfg', 'data_preprocessor', 'pretrained'):
        assert short.model[key] == full.model[key]


def test_the_other_reading_is_the_full_recipe_cut_short():
    short, full = (load(PELK.format(f'tiny_upernet_8xb2-{kind}')).to_dict() for kind in ('80k-160k-recipe', '160k'))
    assert short['param_scheduler'][1].pop('end') * 2 == full['param_scheduler'][1].pop('end')
    for key in ('model', 'optim_wrapper', 'param_scheduler', 'custom_hooks', 'train_dataloader', 'auto_scale_lr'):
        assert short[key] == full[key]
