"""Refusals with FSDP, and the modules that it wraps; that it trains is in test_distributed.py."""

from types import SimpleNamespace

import pytest
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch.distributed.fsdp import FullyShardedDataParallel

from pelk_mm.engine import DynamicSparsityHook, ResumableFSDPStrategy
from pelk_mm.engine.launch import _check_strategy, run
from pelk_mm.engine.runners import add_own_hooks, use_own_runner
from pelk_mm.models import PeLK

SHARDED = dict(runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy'))


@pytest.mark.parametrize('name', ['class_name_wrap_policy', 'wrap_types'])
def test_every_block_is_a_unit(name):
    policy = FUNCTIONS.get(f'pelk_mm.{name}')
    modules = dict(PeLK('atto').named_modules())
    wrapped = {
        name for name, module in modules.items()
        if policy(module, recurse=False, nonwrapped_numel=0, types=['LargeKernelBlock'])
    }
    assert wrapped == {f'stages.{stage}.blocks.{block}' for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))}
    assert all(policy(module, recurse=True, nonwrapped_numel=0, types=[]) for module in modules.values())


def test_one_process_and_clipping_are_refused():
    with pytest.raises(ValueError, match='FSDPStrategy shards a model over processes, .*dist_train.sh'):
        run(Config(dict(SHARDED, optim_wrapper=dict())), 'train')
    clipping = dict(optim_wrapper=dict(clip_grad=dict(max_norm=5.0)))
    with pytest.raises(ValueError, match=r"clip_grad must be None with strategy FSDPStrategy, got {'max_norm': 5.0}"):
        run(Config(dict(SHARDED, **clipping)), 'train', 'pytorch')


def test_tests_are_not_sharded():
    cfg = Config(dict(SHARDED, launcher='none', model=dict()))
    _check_strategy(cfg, 'test')
    assert set(cfg) == {'launcher', 'model'}


def test_sparsity_needs_unsharded_weights():
    wrapper = SimpleNamespace(optimizer=SimpleNamespace())
    runner = SimpleNamespace(optim_wrapper=wrapper, model=SimpleNamespace())
    with pytest.raises(TypeError, match='needs unsharded weights .* take the hook out of custom_hooks'):
        DynamicSparsityHook(sparsity=0.4).before_train(runner)


@pytest.mark.parametrize('name', ['FSDPStrategy', 'pelk_mm.ResumableFSDPStrategy'])
def test_our_tools_shard_by_the_strategy_that_resumes(name):
    cfg = Config(dict(SHARDED, strategy=dict(type=name, state_dict_cfg='full'), model=dict()))
    use_own_runner(cfg)
    add_own_hooks(cfg)
    assert (cfg.runner_type, cfg.strategy.state_dict_cfg) == ('pelk_mm.CheckedFlexibleRunner', 'full')
    assert STRATEGIES.get(cfg.strategy.type) is ResumableFSDPStrategy


def test_upstream_still_gives_the_optimizer_state_first(monkeypatch):
    given = []
    monkeypatch.setattr(FullyShardedDataParallel, 'optim_state_dict_to_load', lambda *args: given.append(args))
    wrapper = SimpleNamespace(optimizer='optimizer', load_state_dict=lambda state: None)
    strategy = SimpleNamespace(model='model', optim_wrapper=wrapper)
    for kind in (ResumableFSDPStrategy, FSDPStrategy):
        kind.load_optim_state_dict(strategy, 'state')
    assert given == [('model', 'optimizer', 'state'), ('state', 'model', 'optimizer')]
