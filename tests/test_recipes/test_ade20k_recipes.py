"""Resolved values of every recipe for ADE20K against a table written by hand from its source.

Sources: ConvNeXt's and SLaK's files for 160k; SLaK's ``upernet_slak_tiny_512_80k_ade20k_ss.py`` (4 GPUs x 8 crops);
RepLKNet's ``RepLKNet-31B_1Kpretrain_upernet_160k_ade20k_512.py`` (64 GPUs x 2 crops x 40k iterations at 2e-4); Swin's.
"""

from typing import NamedTuple

import pytest
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pelk_mm.analysis import build_model

from ..helpers import config_tree
from ..helpers.config_tree import ROOT, optimizer_of


class Recipe(NamedTuple):
    """Values of a source: batch and iterations, optimiser, warm-up in iterations, and arguments of the backbone."""

    batch: int
    iterations: int
    lr: float
    weight_decay: float
    warmup: int
    drop_path: float
    layer_decay: float | None
    undecayed: str
    keeps_zeros: bool
    test: str


PELK_T = Recipe(16, 160000, 1e-4, 0.05, 1500, 0.4, 0.9, 'one dimension', True, 'slide')
CONVNEXT_T = PELK_T._replace(keeps_zeros=False)
SLAK_80K = Recipe(32, 80000, 2e-4, 0.05, 800, 0.1, None, 'norms', False, 'slide')
SWIN = Recipe(16, 160000, 6e-5, 0.01, 1500, 0.3, None, 'norms', False, 'whole')
TABLE = {
    'ade20k/pelk-tiny_upernet_8xb2-160k': PELK_T,
    'ade20k/pelk-small_upernet_8xb2-160k': PELK_T._replace(drop_path=0.3),
    'ade20k/pelk-base_upernet_8xb2-160k': PELK_T,
    'ade20k/pelk-base-101_upernet_8xb2-160k': PELK_T,
    'ade20k/pelk-tiny_dense_upernet_8xb2-160k': CONVNEXT_T,
    'ade20k/pelk-small_dense_upernet_8xb2-160k': CONVNEXT_T._replace(drop_path=0.3),
    'ade20k/pelk-base_dense_upernet_8xb2-160k': CONVNEXT_T,
    'ade20k/pelk-tiny_upernet_8xb4-80k': SLAK_80K,
    'ade20k/pelk-tiny_upernet_8xb2-80k-160k-recipe': PELK_T._replace(iterations=80000),
    'baselines/ade20k/slak-tiny_upernet_8xb2-160k': PELK_T,
    'baselines/ade20k/slak-small_upernet_8xb2-160k': PELK_T._replace(drop_path=0.3),
    'baselines/ade20k/slak-base_upernet_8xb2-160k': PELK_T,
    'baselines/ade20k/convnext-tiny_upernet_8xb2-160k': CONVNEXT_T,
    'baselines/ade20k/convnext-small_upernet_8xb2-160k': CONVNEXT_T._replace(drop_path=0.3),
    'baselines/ade20k/convnext-base_upernet_8xb2-160k': CONVNEXT_T,
    'grown/pelk-convnext-tiny_upernet_8xb2-160k': CONVNEXT_T,
    'grown/pelk-convnext-small_upernet_8xb2-160k': CONVNEXT_T._replace(drop_path=0.3),
    'grown/pelk-convnext-base_upernet_8xb2-160k': CONVNEXT_T,
    'baselines/ade20k/swin-tiny_upernet_8xb2-160k': SWIN,
    'baselines/ade20k/swin-small_upernet_8xb2-160k': SWIN,
    'baselines/ade20k/swin-base_upernet_8xb2-160k': SWIN,
    # As many crops as its authors showed it, with a 100th of them for the warm-up, and their 2e-4 at 128 crops a step.
    'baselines/ade20k/replknet-31b_upernet_8xb4-160k': Recipe(32, 160000, 5e-5, 0.05, 1600, 0.5, None, 'norms',
                                                              False, 'whole'),
    'ablations/table1_dense_vs_stripe/slak-51-tiny_upernet_8xb4-80k': SLAK_80K,
    'ablations/table1_dense_vs_stripe/replk-51-tiny_upernet_8xb4-80k': SLAK_80K,
    'ablations/table1_dense_vs_stripe/slak-51-tiny_no-sparsity_upernet_8xb4-80k': SLAK_80K,
    'ablations/table1_dense_vs_stripe/replk-51-tiny_no-sparsity_upernet_8xb4-80k': SLAK_80K,
    **{
        f'ablations/fig2_kernel_size/{form}-{size}-tiny_upernet_8xb4-80k': SLAK_80K
        for form in ('dense', 'stripe') for size in (7, 13, 25, 31, 51)
    },
}


def load(name: str) -> Config:
    return config_tree.load(f'configs/{name}_ade20k-512x512.py')


def test_every_config_is_in_the_table():
    files = {str(path.relative_to(ROOT / 'configs')) for path in (ROOT / 'configs').rglob('*_ade20k-512x512.py')}
    assert files == {f'{name}_ade20k-512x512.py' for name in TABLE}


@pytest.mark.parametrize('name', TABLE)
def test_values(name):
    cfg, recipe = load(name), TABLE[name]
    optimizer, paramwise = cfg.optim_wrapper.optimizer, cfg.optim_wrapper.paramwise_cfg
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', recipe.lr, recipe.weight_decay)
    assert optimizer.betas == (0.9, 0.999)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == recipe.batch
    assert f'_8xb{recipe.batch // 8}-{recipe.iterations // 1000}k' in name
    assert cfg.train_cfg.max_iters == recipe.iterations
    warmup, poly = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.begin, warmup.end) == ('LinearLR', 1e-6, 0, recipe.warmup)
    assert (poly.type, poly.power, poly.eta_min) == ('PolyLR', 1.0, 0.0)
    assert (poly.begin, poly.end) == (recipe.warmup, recipe.iterations)
    assert cfg.model.backbone.drop_path_rate == recipe.drop_path
    assert cfg.model.backbone.get('layer_scale_init_value', 1.0) == 1.0
    assert paramwise.get('layer_decay_rate', paramwise.get('decay_rate')) == recipe.layer_decay
    hooks = [hook for hook in cfg.get('custom_hooks', []) if 'Sparsity' in hook.type]
    assert [hook.init for hook in hooks] == ['zeros'] * recipe.keeps_zeros
    assert cfg.model.test_cfg.mode == recipe.test
    assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4


@pytest.mark.parametrize('name', [
    'ade20k/pelk-tiny_upernet_8xb4-80k', 'ablations/fig2_kernel_size/stripe-7-tiny_upernet_8xb4-80k',
    'baselines/ade20k/replknet-31b_upernet_8xb4-160k', 'ade20k/pelk-tiny_upernet_8xb2-160k'
])
def test_which_parameters_decay(name):
    """With 'norms' biases and layer scale decay, all else of one dimension does not; the embedding never does."""
    cfg = load(name)
    model = build_model(cfg)
    groups = optimizer_of(cfg, model).param_groups
    decays = {id(param): group['weight_decay'] for group in groups for param in group['params']}
    norms = {
        id(param)
        for module in model.modules() if isinstance(module, (nn.LayerNorm, _BatchNorm)) for param in module.parameters()
    }
    flat = {id(param) for param in model.parameters() if param.ndim == 1} - norms
    embeddings = {id(param) for key, param in model.named_parameters() if key.endswith('position_embedding.weight')}
    assert len(embeddings) == (4 if '/pelk-' in name else 0)
    assert len(norms) > 40
    assert len(flat) > 1
    assert {decays[key] for key in flat} == {0.05 if TABLE[name].undecayed == 'norms' else 0.0}
    assert {decays[key] for key in norms | embeddings} == {0.0}
    assert {decays[key] for key in decays.keys() - norms - flat - embeddings} == {0.05}


@pytest.mark.parametrize('name', [name for name in TABLE if '8xb4-80k' in name])
def test_ablations_have_the_images_of_the_full_recipe(name):
    cfg, full = load(name), load('ade20k/pelk-tiny_upernet_8xb2-160k')
    assert (cfg.train_dataloader.dataset, cfg.test_dataloader) == (full.train_dataloader.dataset, full.test_dataloader)
    for key in ('test_cfg', 'data_preprocessor', 'pretrained'):
        assert cfg.model[key] == full.model[key]


def test_the_other_reading_is_the_full_recipe_cut_short():
    short, full = (load(f'ade20k/pelk-tiny_upernet_8xb2-{kind}').to_dict() for kind in ('80k-160k-recipe', '160k'))
    assert short['param_scheduler'][1].pop('end') * 2 == full['param_scheduler'][1].pop('end')
    for key in ('model', 'optim_wrapper', 'param_scheduler', 'custom_hooks', 'train_dataloader', 'auto_scale_lr'):
        assert short[key] == full[key]
