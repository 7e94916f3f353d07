"""A model's parts have the same names inside of wrappers: for rates, masks, reports and checkpoints."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from pelk_mm.checkpoints.convert import BACKBONE_NAMES, rename
from pelk_mm.checkpoints.loading import safe_load
from pelk_mm.checkpoints.pretrained import PretrainedBackbone
from pelk_mm.checkpoints.publish import publish_file
from pelk_mm.engine.nan_tracing import non_finite_names, trace
from pelk_mm.engine.sparsity import clean_parameters, find_sparse_parameters
from pelk_mm.models import PeLK
from pelk_mm.module_names import clean_name

ARCH = dict(depths=(1, 1, 4, 1), channels=(8, 8, 8, 8), kernel_sizes=(9, 9, 9, 9))


class Fsdp(nn.Module):
    """As FSDP names what it wraps, and passes attributes on."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._fsdp_wrapped_module, name)

    def forward(self, *args):
        return self._fsdp_wrapped_module(*args)


WRAPPERS = dict(
    compiled=lambda module: torch.compile(module, backend='eager'),
    checkpointed=checkpoint_wrapper,
    sharded=Fsdp,
    parallel=nn.DataParallel,
    nested=lambda module: torch.compile(Fsdp(checkpoint_wrapper(module)), backend='eager'))


def model(wrapped='nothing', wrapper=lambda module: module):
    torch.manual_seed(0)
    net = PeLK(ARCH)
    if wrapped in ('block', 'all'):
        net.stages[2].blocks[3] = wrapper(net.stages[2].blocks[3])
    if wrapped in ('stage', 'all'):
        net.stages[2] = wrapper(net.stages[2])
    if wrapped in ('downsampling', 'all'):
        net.downsample_layers[1] = wrapper(net.downsample_layers[1])
    net = nn.ModuleDict(dict(backbone=wrapper(net) if wrapped in ('backbone', 'all') else net, head=nn.Linear(10, 4)))
    return wrapper(net) if wrapped in ('model', 'all') else net


PLAIN = model()
PARTS = pytest.mark.parametrize('part', ['model', 'backbone', 'stage', 'block', 'downsampling', 'all'])
KINDS = pytest.mark.parametrize('kind', WRAPPERS)


@pytest.fixture
def wrapped(part, kind):
    return model(part, WRAPPERS[kind])


def optimiser(net, **paramwise):
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor='pelk_mm.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5, **paramwise))
    groups = build_optim_wrapper(net, cfg).optimizer.param_groups
    names = {id(parameter): name for name, parameter in clean_parameters(net).items()}
    return {names[id(parameter)]: (group['lr'], group['weight_decay'], group['layer_id'])
            for group in groups for parameter in group['params']}


def test_clean_names():
    assert clean_name('module.backbone._orig_mod.stages.0._checkpoint_wrapped_module.blocks.1') == \
        'backbone.stages.0.blocks.1'
    assert clean_name('backbone._fsdp_wrapped_module.') == 'backbone.'
    assert clean_name('module.') == clean_name('') == ''
    # Names that only resemble them.
    assert clean_name('my_module.modules.orig_mod.module_list.0') == 'my_module.modules.orig_mod.module_list.0'


@PARTS
@KINDS
@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_learning_rates(wrapped, decay_type):
    options = dict(decay_type=decay_type, custom_keys={
        'backbone.stages.2.blocks': dict(lr_mult=0.1),
        '.position_embedding': dict(decay_mult=0.0)
    })
    assert optimiser(wrapped, **options) == optimiser(PLAIN, **options)


@PARTS
@KINDS
def test_sparse_weights(wrapped):
    part = r'^backbone\.stages\.2\.blocks'
    for patterns in (dict(), dict(include=part), dict(exclude=['^head', part])):
        names = list(find_sparse_parameters(PLAIN, **patterns))
        assert list(find_sparse_parameters(wrapped, **patterns)) == names
    assert len(names) > 4


@PARTS
@KINDS
def test_depth_asked_of_the_backbone(wrapped):
    inner = next(module for module in wrapped.modules() if isinstance(module, PeLK))
    depths = [PLAIN['backbone'].get_layer_depth(name) for name, _ in PLAIN['backbone'].named_parameters()]
    assert [inner.get_layer_depth(name) for name, _ in inner.named_parameters()] == depths
    assert len(set(depths)) > 5


def test_patterns_may_hold_the_names_of_wrappers_too():
    compiled = model('backbone', WRAPPERS['compiled'])
    names = list(find_sparse_parameters(compiled, include=r'^backbone\._orig_mod\.stages'))
    assert names == list(find_sparse_parameters(PLAIN, include=r'^backbone\.stages'))


def test_a_wrapper_of_another_name_hides_nothing_that_the_backbone_knows():
    class Wrapper(Fsdp):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.inside = module

        def __getattr__(self, name):
            try:
                return nn.Module.__getattr__(self, name)
            except AttributeError:
                return getattr(self.inside, name)

    other = model('backbone', Wrapper)
    assert sorted(optimiser(other).values()) == sorted(optimiser(PLAIN).values())
    assert len(find_sparse_parameters(other)) == len(find_sparse_parameters(PLAIN))


def test_same_names_without_wrappers_lose_no_parameter():
    net = nn.ModuleDict(dict(fc=nn.Linear(2, 2), module=nn.ModuleDict(dict(fc=nn.Linear(2, 2)))))
    assert list(clean_parameters(net)) == ['fc.weight', 'fc.bias', 'module.fc.weight', 'module.fc.bias']
    assert list(find_sparse_parameters(net)) == ['fc.weight', 'module.fc.weight']


def test_averaged_weights_have_the_names_of_the_model():
    compiled = model('backbone', WRAPPERS['compiled'])
    average = ExponentialMovingAverage(compiled)
    assert list(clean_parameters(average.module)) == list(clean_parameters(compiled)) == list(clean_parameters(PLAIN))


@pytest.fixture
def warnings(caplog):
    logger = MMLogger.get_instance('test_module_names', logger_name='test_module_names')
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_a_decay_that_reaches_almost_nothing_says_so(warnings):
    optimiser(PLAIN)
    assert warnings.text == ''
    net = model()
    net['backbone'].get_layer_depth = lambda param_name, prefix='': (7, 8)
    optimiser(net)
    count = len(list(net['backbone'].parameters()))
    assert f'lowers the learning rate of 0 of {count} trained parameters of the backbone' in warnings.text
    assert 'layer_decay_rate=0.5' in warnings.text


def test_custom_keys_that_match_nothing_say_so(warnings):
    optimiser(PLAIN, custom_keys={'backbone.stage.2': dict(lr_mult=0.1), 'head': dict(lr_mult=2.0)})
    assert "custom_keys match no parameter: 'backbone.stage.2'" in warnings.text
    assert "'head'" not in warnings.text


@PARTS
@KINDS
def test_reports_of_nan(wrapped):
    parameters = dict(wrapped.named_parameters())
    name = next(name for name in parameters if clean_name(name) == 'backbone.stages.2.blocks.3.gamma')
    with torch.no_grad():
        parameters[name].fill_(float('nan'))
    assert non_finite_names(parameters) == ['backbone.stages.2.blocks.3.gamma']


# DataParallel passes no mixer arguments of its own to a stage.
@pytest.mark.parametrize(('part', 'kind'), [(part, kind) for part in ('backbone', 'stage', 'block') for kind in WRAPPERS
                                            if (part, kind) != ('stage', 'parallel')])
def test_the_layer_that_is_found(wrapped, part):
    torch._dynamo.reset()
    parameters = clean_parameters(wrapped)
    with torch.no_grad():
        parameters['backbone.stages.2.blocks.3.pointwise_conv1.weight'].fill_(float('nan'))
    images = torch.rand(2, 3, 32, 32)
    # Compiled before it was watched, as in training.
    wrapped['backbone'](images)
    seen, _ = trace(wrapped, lambda: dict(loss=wrapped['head'](wrapped['backbone'](images)[0]).sum()),
                    lambda losses: losses['loss'])
    assert seen.forward == 'what backbone.stages.2.blocks.3.pointwise_conv1 (Linear) returns'


@PARTS
@KINDS
def test_checkpoints_load_without_the_wrapper(wrapped, tmp_path):
    state = {name: value + 1 if value.is_floating_point() else value for name, value in wrapped.state_dict().items()}
    right = {clean_name(name): value for name, value in state.items()}
    path = tmp_path / 'wrapped.pth'
    torch.save(dict(state_dict=state, meta=dict()), path)
    net = model()['backbone']
    PretrainedBackbone(str(path))(net)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, right[f'backbone.{name}'], rtol=0, atol=0)
    converted, unmatched = rename(state, BACKBONE_NAMES)
    assert list(converted) == list(net.state_dict())
    assert [clean_name(name) for name in unmatched] == ['head.weight', 'head.bias']
    published, _, _ = publish_file(str(path), str(tmp_path / 'published.pth'))
    names = safe_load(str(published))['state_dict']
    assert not [name for name in names if '_orig_mod' in name or '_wrapped_module' in name]
    assert [clean_name(name) for name in names] == list(right)


@KINDS
@pytest.mark.parametrize('part', ['backbone', 'stage', 'block', 'downsampling'])
def test_state_dicts_of_other_wrappers_load(wrapped, kind):
    """Strictly, with PyTorch's own method."""
    plain = model()
    torch.nn.init.ones_(plain['backbone'].stages[2].blocks[3].gamma)
    state = wrapped.state_dict()
    plain.load_state_dict(state)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, {clean_name(key): each for key, each in state.items()}[name])


# FSDP has hooks of its own for this, which the stand-in here lacks.
@pytest.mark.parametrize('kind', ['compiled', 'checkpointed', 'parallel'])
@pytest.mark.parametrize('part', ['stage', 'block', 'downsampling'])
def test_plain_state_dicts_load_into_a_backbone_of_wrapped_parts(wrapped):
    plain = model()
    torch.nn.init.ones_(plain['backbone'].stages[2].blocks[3].gamma)
    wrapped.load_state_dict(plain.state_dict())
    assert clean_parameters(wrapped)['backbone.stages.2.blocks.3.gamma'].min() == 1
