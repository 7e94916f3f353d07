"""Our runners add hooks to a config, each of which it can change or leave out."""

import pytest
from mmengine.config import Config

from pelk_mm.engine import PreemptionHook
from pelk_mm.engine.runners import OWN_HOOKS, add_own_hooks, use_own_runner

OWN = {name: dict(type=f'pelk_mm.{kind.__name__}') for name, kind in OWN_HOOKS.items()}


def hooks_of(**values) -> dict:
    """The default hooks of a config, once and again with what was added."""
    cfg = Config(values)
    add_own_hooks(cfg)
    once = cfg.default_hooks.to_dict()
    if None not in values.get('default_hooks', {}).values():
        add_own_hooks(cfg)
        assert cfg.default_hooks.to_dict() == once
    return once


def test_additions_of_a_runner_are_in_the_config_and_can_be_left_out():
    given = dict(logger=dict(interval=2), checkpoint=dict(max_keep_ckpts=1))
    own = dict(OWN, previous_run=dict(type='pelk_mm.KeepPreviousRunHook', action='stop'))
    assert hooks_of(default_hooks=given, previous_run='stop') == dict(
        own, logger=dict(interval=2), checkpoint=dict(type='pelk_mm.AtomicCheckpointHook', max_keep_ckpts=1))
    hooks = hooks_of(
        data_checks=dict(class_count=False), default_hooks=dict(check_finite=dict(interval=3), preemption=None))
    assert set(OWN_HOOKS) - set(hooks) == {'class_count', 'preemption'}
    assert hooks['checkpoint'] == dict(type='pelk_mm.AtomicCheckpointHook', interval=1)
    assert hooks['check_finite'] == dict(type='pelk_mm.CheckFiniteHook', interval=3)
    for kept in (None, dict(type='MyCheckpointHook')):
        assert hooks_of(default_hooks=dict(checkpoint=kept))['checkpoint'] == kept


@pytest.mark.parametrize('given', [
    dict(type='pelk_mm.PreemptionHook', interval=3), dict(type=PreemptionHook), PreemptionHook(),
    dict(type=type('Own', (PreemptionHook, ), {}))
])
def test_hooks_of_custom_hooks_are_not_added_again(given):
    assert set(hooks_of(custom_hooks=[given])) == {'checkpoint', *OWN_HOOKS} - {'preemption'}


@pytest.mark.parametrize(('given', 'used', 'has_hooks'), [
    ('Runner', 'pelk_mm.CheckedRunner', False), ('FlexibleRunner', 'pelk_mm.CheckedFlexibleRunner', False),
    ('pelk_mm.CheckedRunner', 'pelk_mm.CheckedRunner', False), ('MyRunner', 'MyRunner', True)
])
def test_our_runner_takes_the_place_of_mmengines_and_adds_hooks_itself(given, used, has_hooks):
    cfg = Config(dict(runner_type=given))
    use_own_runner(cfg)
    assert (cfg.runner_type, 'default_hooks' in cfg) == (used, has_hooks)
