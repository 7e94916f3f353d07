"""Misspelt types and arguments of our modules are answered with the near name, from configs and from Python alike."""

import inspect

import pytest
from mmengine.registry import HOOKS, MODELS, DefaultScope

from pelk_mm.engine import DynamicSparsityHook
from pelk_mm.models import PeLK, SLaK

SMALL = dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8))


@pytest.mark.parametrize(('registry', 'config', 'words'), [
    (MODELS, dict(type='pelk_mm.PeLK', archh='tiny'), ("PeLK does not take archh='tiny'", "did you mean 'arch'?")),
    (MODELS, dict(type='pelk_mm.PeLK', drop_path='0.1'), ("drop_path='0.1'", "'drop_path_rate'?", 'out_indices')),
    (MODELS, dict(type='pelk_mm.PeLK', arch='atto', xyz=1), ('PeLK does not take xyz=1. It takes: act_cfg, arch, ', )),
    (MODELS, dict(type='pelk_mm.SLaK', stripe_widths=5), ('SLaK does not take', "'stripe_width'?")),
    (HOOKS, dict(type='pelk_mm.DynamicSparsityHook', sparcity=0.4), ("sparcity=0.4: did you mean 'sparsity'?", )),
])
def test_unknown_arguments(registry, config, words):
    with DefaultScope.overwrite_default_scope('mmengine'), pytest.raises(TypeError) as error:
        registry.build(config)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(('registry', 'name', 'near'), [
    (MODELS, 'pelk_mm.PeLKK', "'PeLK'"),
    (MODELS, 'pelk_mm.slak', "'SLaK'"),
    (HOOKS, 'pelk_mm.DynamicSparseHook', "'DynamicSparsityHook'"),
])
def test_unknown_types(registry, name, near):
    with pytest.raises(KeyError, match=f'did you mean {near}'):
        registry.build(dict(type=name))


def test_names_that_resemble_nothing_are_left_to_upstream():
    assert MODELS.get('pelk_mm.Xyzzy') is None
    with pytest.raises(KeyError, match='Xyzzy is not in the'):
        MODELS.build(dict(type='pelk_mm.Xyzzy'))


def test_from_python_and_in_a_subclass_with_arguments_of_its_own():

    class Mine(PeLK):

        def __init__(self, extra, **kwargs):
            super().__init__(**kwargs)
            self.extra = extra

    assert Mine(3, arch='atto', **SMALL).extra == 3
    with pytest.raises(TypeError, match="PeLK does not take kernel_size=51: did you mean 'kernel_sizes'"):
        Mine(3, kernel_size=51)
    with pytest.raises(TypeError, match="did you mean 'stripe_width'"):
        SLaK(stripe=5)


def test_signatures_stay_visible():
    assert list(inspect.signature(DynamicSparsityHook).parameters)[:2] == ['init', 'sparsity']
