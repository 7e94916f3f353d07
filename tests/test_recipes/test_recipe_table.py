"""docs/recipes.md is what the configs say, and its script notices what differs."""

import copy
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]


def load_script():
    spec = importlib.util.spec_from_file_location('docs_recipes', ROOT / 'docs/recipes.py')
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


recipes = load_script()
DATA = yaml.safe_load(recipes.SOURCES.read_text(encoding='utf-8'))


def test_the_page_is_that_of_the_configs():
    """After a change of a config or of recipes.yml: python docs/recipes.py."""
    assert recipes.PAGE.read_text(encoding='utf-8') == recipes.make_page(DATA)


def test_no_recipe_is_left_out():
    listed = {path for recipe in DATA['recipes'].values() for path in recipe['configs'].values()}
    there = {
        str(path.relative_to(ROOT)) for folder in ('imagenet', 'ade20k', 'coco')
        for path in (ROOT / 'configs' / folder).glob('*.py') if '_dense_' not in path.name
    }
    # Baselines whose values are PeLK's are compared with it in test_configs.py.
    there |= {
        str(path.relative_to(ROOT)) for path in (ROOT / 'configs/baselines').rglob('*.py')
        if re.search('swin|replknet|finetune', path.name) and 'scratch' not in path.name
    }
    assert there <= listed
    assert all((ROOT / path).is_file() for path in listed)


CONFIG = Config(
    dict(
        default_scope='mmpretrain',
        model=dict(
            backbone=dict(type='pelk_mm.PeLK', width_factor=1.1),
            heads=[dict(type='mmdet.Box', convs=4), dict(type='Box', convs=4), dict(type='Mask', convs=(1, 2))]),
        train_dataloader=dict(dataset=dict(pipeline=[dict(type='RandomErasing'), dict(type='Crop', prob=1)])),
        train_cfg=dict(max_epochs=10),
        param_scheduler=[dict(type='LinearLR', start_factor=0.001, end=2), dict(type='CosineAnnealingLR', begin=2)],
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=3e-4),
            paramwise_cfg=dict(bias_decay_mult=0.0, custom_keys={'.position_embedding': dict(decay_mult=0.5)})),
        custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True)]))


@pytest.mark.parametrize(('path', 'value'), [
    ('train_cfg.max_epochs', 10),
    ('train_cfg.max_iters', None),
    ('absent.at.all', None),
    # By type, in any scope; several of one value are one.
    ('model.heads[Box].convs', 4),
    ('model.heads[Mask].convs', (1, 2)),
    ('model.heads[Other].convs', None),
    ('model.heads[2].type', 'Mask'),
    ('custom_hooks[EMAHook].momentum', 0.1),
    # What is set, else the default of the class or of one that it inherits from.
    ('model.backbone.width_factor', 1.1),
    ('model.backbone.small_kernel', 5),
    ('model.backbone.layer_scale_init_value', 1e-6),
    ('model.backbone.branch_norm_cfg.type', 'BN'),
    ('model.backbone.no_such_argument', None),
    ('optim_wrapper.optimizer.betas', (0.9, 0.999)),
    ('train_dataloader.dataset.pipeline[RandomErasing].erase_prob', 0.5),
    ('train_dataloader.dataset.pipeline[Crop].prob', 1),
])
def test_look_up(path, value):
    assert recipes.our_value(CONFIG, path) == value


def test_a_schedule_that_is_no_list():
    cfg = Config(
        dict(
            default_scope='mmengine',
            train_cfg=dict(max_iters=50),
            param_scheduler=dict(type='CosineAnnealingLR', eta_min=1e-6, convert_to_iter_based=True)))
    assert recipes.our_value(cfg, 'param_scheduler[CosineAnnealingLR].eta_min') == 1e-6
    assert recipes.our_value(cfg, 'param_scheduler[LinearLR].end') is None
    assert recipes.our_value(cfg, 'fall_end()') == 50
    assert recipes.our_value(cfg, 'rate_each_step()') is True


def test_look_up_of_entries_that_differ():
    cfg = Config(dict(heads=[dict(type='A', width=1), dict(type='B', width=7), dict(type='A', width=2)]))
    assert recipes.look_up(cfg, 'heads[A].width') == [1, 2]


def derived(cfg):
    """Values that no single key holds."""
    return {name: recipes.our_value(cfg, f'{name}()') for name in recipes.DERIVED if name not in ('batch', 'images')}


def test_values_that_no_key_holds():
    values = dict(
        ema_decay=0.9, buffers_averaged=True, warmup_start=3e-7, fall_end=10, rate_each_step=False, norms_decay=True,
        biases_decay=False, flat_decay=True, embedding_decays=True, mixed_precision=False, drop_last=False,
        width_factor=1.1)
    assert derived(CONFIG) == pytest.approx(values)
    cfg = copy.deepcopy(CONFIG)
    cfg.merge_from_dict(
        dict(
            param_scheduler=[dict(type='PolyLR', end=8, convert_to_iter_based=True)],
            custom_hooks=[dict(type='pelk_mm.SomeEMAHook')],
            optim_wrapper=dict(
                type='AmpOptimWrapper',
                paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'.position_embedding': dict(decay_mult=0.0)}))))
    cfg.train_dataloader.drop_last = True
    assert derived(cfg) == dict(
        values, ema_decay=None, buffers_averaged=False, warmup_start=None, fall_end=8, rate_each_step=True,
        norms_decay=False, embedding_decays=False, mixed_precision=True, drop_last=True)
    cfg.custom_hooks = []
    assert recipes.our_value(cfg, 'buffers_averaged()') is None


@pytest.mark.parametrize(('name', 'per_step', 'said', 'images'), [
    ('net_8xb4_set.py', 1, 32, 32),
    ('net_8xb4-160k_set-512x512.py', 1, 32, 32),
    ('net_8xb4_set.py', 3, 96, 96),
    ('net_8xb4_set.py', 1, 64, None),
    ('net_8xb4_set.py', 2, 32, None),
    ('net_set.py', 1, 32, None),
])
def test_batch_of_name_and_of_auto_scale_lr(tmp_path, name, per_step, said, images):
    (tmp_path / name).write_text(f'train_dataloader = dict(batch_size=4)\ntrain_cfg = dict(max_iters=100)\n'
                                 f'optim_wrapper = dict(accumulative_counts={per_step})\n'
                                 f'auto_scale_lr = dict(base_batch_size={said})\n')  # yapf: disable
    cfg = Config.fromfile(tmp_path / name)
    if images is None:
        with pytest.raises(ValueError, match=rf'{name}: by its name .* by auto_scale_lr {said}'):
            recipes.batch(cfg)
    else:
        assert (recipes.batch(cfg), recipes.DERIVED['images'](cfg)) == (images, 100 * images)


def page_of(rows, **recipe):
    """The page of one recipe of two models, A with the learning rate 1e-4 and B with 2e-4, both with 10 epochs."""
    configs = {
        model: Config(dict(default_scope='mmengine', lr=lr, epochs=10, scales=((1, 2), (3, 4)), warm=True))
        for model, lr in (('A', 1e-4), ('B', 2e-4))
    }
    data = dict(
        introduction='# Title\n',
        sources={key: dict(name=f'Paper {key}', url=f'https://{key}') for key in ('x', 'y', 'z')},
        recipes=dict(first=dict(title='One', source='x', configs=dict(A='A', B='B'), rows=rows), **recipe))
    return recipes.make_page(data, configs.__getitem__)


@pytest.mark.parametrize(('theirs', 'why', 'cells'), [
    (dict(A=0.0001, B=0.0002), '', '0.0001 / 0.0002 | 0.0001 / 0.0002 | Paper x | same'),
    (dict(A=0.1 * 0.001, B=0.2 * 0.001), '', '0.0001 / 0.0002 | 0.0001 / 0.0002 | Paper x | same'),
    (dict(A=0.0001, B=0.0003), 'it is tiny', '0.0001 / 0.0002 | 0.0001 / 0.0003 | Paper x | it is tiny'),
    (0.0001, 'one for both', '0.0001 / 0.0002 | 0.0001 | Paper x | one for both'),
    ('not said', 'silent', '0.0001 / 0.0002 | not said | Paper x | silent'),
    (None, 'has no such value', '0.0001 / 0.0002 | none | Paper x | has no such value'),
])
def test_a_row(theirs, why, cells):
    assert f'| rate | `lr` | {cells} |\n' in page_of([dict(what='rate', at='lr', theirs=theirs, why=why)])


def test_lists_and_switches_in_a_row():
    page = page_of([
        dict(what='scales', at='scales', theirs=[[1, 2], [3, 4]]),
        dict(what='warm', at='warm', theirs=True, source='y'),
    ])
    assert '| scales | `scales` | (1, 2), (3, 4) | (1, 2), (3, 4) | Paper x | same |\n' in page
    assert '| warm | `warm` | yes | yes | Paper y | same |\n' in page
    assert '## One\n\n[A](../A), [B](../B).\n' in page
    assert page.endswith('## Sources\n\n- Paper x: <https://x>\n- Paper y: <https://y>\n')


@pytest.mark.parametrize(('row', 'message'), [
    (dict(at='lr', theirs=1e-4), 'first, value: ours 0.0001 / 0.0002, theirs 0.0001, without a reason'),
    (dict(at='lr', theirs=dict(A=1e-4, B=2.1e-4)), 'theirs 0.0001 / 0.00021, without a reason'),
    # YAML's reading of 1e-4, and a switch in the place of a number.
    (dict(at='epochs', theirs='10'), 'ours 10, theirs 10, without a reason'),
    (dict(at='warm', theirs=1), 'ours yes, theirs 1, without a reason'),
    (dict(at='epochs', theirs=None), 'ours 10, theirs none, without a reason'),
    (dict(at='scales', theirs=[[1, 2]]), r'theirs \(1, 2\), without a reason'),
    (dict(at='epochs', theirs=10, why='ours is better'), 'the same, but with a reason: ours is better'),
    (dict(at='epoch', theirs=None), 'epoch is set in no recipe'),
    (dict(at='epoch', theirs=10, why='ours is another'), 'epoch is set in no recipe'),
])
def test_wrong_rows_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        page_of([dict(what='value', **row)])


def test_every_problem_is_named():
    with pytest.raises(ValueError, match='one: ours 10, theirs 11.*\n.*two: ours yes, theirs no'):
        page_of([dict(what='one', at='epochs', theirs=11), dict(what='two', at='warm', theirs=False)])


def test_a_recipe_like_another():
    rows = [
        dict(what='epochs', at='epochs', theirs=10),
        dict(what='warm', at='warm', theirs=True, source='z'),
        dict(what='scales', at='scales', theirs=[[1, 2], [3, 4]])
    ]
    page = page_of(
        rows,
        second=dict(
            title='Two',
            source='y',
            like='first',
            configs=dict(A='A'),
            instead=dict(z='y'),
            without=['scales'],
            rows=[
                dict(what='epochs', at='epochs', theirs=12, why='shorter'),
                dict(what='rate', at='lr', theirs=1e-4),
            ]),
        third=dict(title='Three', source='x', like='first', configs=dict(B='B')))
    second, third = (page.partition(f'## {title}\n')[2].partition('\n##')[0] for title in ('Two', 'Three'))
    assert second.split('---|\n')[1].strip().splitlines() == [
        '| epochs | `epochs` | 10 | 12 | Paper y | shorter |', '| warm | `warm` | yes | yes | Paper y | same |',
        '| rate | `lr` | 0.0001 | 0.0001 | Paper y | same |'
    ]
    assert [line.split(' | ')[-2:] for line in third.split('---|\n')[1].strip().splitlines()] == [
        ['Paper x', 'same |'], ['Paper z', 'same |'], ['Paper x', 'same |']]  # yapf: disable


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('optim_wrapper.optimizer.weight_decay', 0.06, 'weight decay: ours 0.05 / 0.06 / 0.05 / 0.05 / 0.05, theirs 0.05'),
    ('model.backbone.drop_path_rate', 0.3, 'ours 0.1 / 0.3 / 0.5 / 0.1 / 0.5, theirs 0.1 / 0.4 / 0.5 / 0.1 / 0.5'),
    ('model.backbone.small_kernel', None, 'beside the large one: ours 5 / none / 5 / 5 / 5, theirs 5'),
    ('train_cfg.max_epochs', 299, 'epochs: ours 300 / 299 / 300 / 300 / 300, theirs 300'),
    ('model.train_cfg.augments', [], 'CutMix: ours 1 / none / 1 / 1 / 1, theirs 1'),
])
def test_a_changed_config_is_noticed(key, value, message):
    changed = copy.deepcopy(recipes.read('configs/imagenet/pelk-small_32xb128_in1k.py'))
    changed.merge_from_dict({key: value})
    data = dict(DATA, recipes=dict(imagenet_300e=DATA['recipes']['imagenet_300e']))
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.make_page(data, lambda path: changed if 'pelk-small' in path else recipes.read(path))
