"""Backbones of any valid arguments: shapes, gradients, deployment, checkpoints; of invalid ones: what the error names.

The nets are a few channels wide. Each example builds some of them, so there are fewer than for the operator.
"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pelk_mm.layers import LayerNorm2d
from pelk_mm.models import PeLK, SLaK
from pelk_mm.testing.random_weights import randomise

from ..helpers.strategies import half_grids, odd

FEW = settings(max_examples=max(settings.default.max_examples // 8, 1))
MODELS = pytest.mark.parametrize('cls', [PeLK, SLaK], ids=lambda cls: cls.__name__)
# Lists, as in configs.
HALF_GRIDS = half_grids(widest=5, longest=3).map(list)


@st.composite
def common_arguments(draw, stages: int) -> dict:
    """Arguments of the skeleton, for a number of stages."""
    indices = st.integers(-stages, stages - 1)
    return dict(
        in_channels=draw(st.integers(1, 4)),
        width_factor=draw(st.floats(0.5, 2)),
        ffn_ratio=draw(st.floats(1, 4)),
        norm_cfg=draw(st.sampled_from([None, dict(type='BN'), dict(type='pelk_mm.LN2d', eps=1e-5)])),
        branch_norm_cfg=draw(st.sampled_from([None, dict(type='BN'), dict(type='BN', eps=1e-3)])),
        act_cfg=draw(st.sampled_from([None, dict(type='ReLU'), dict(type='SiLU')])),
        drop_path_rate=draw(st.floats(0, 0.9)),
        layer_scale_init_value=draw(st.sampled_from([0.0, 0.5, 1.0])),
        out_indices=draw(st.one_of(indices, st.lists(indices, min_size=1, max_size=stages + 1))),
        frozen_stages=draw(st.integers(0, stages)),
        gap_before_final_norm=draw(st.booleans()),
        with_cp=draw(st.booleans()))


def per_stage(stages: int, entries: st.SearchStrategy) -> st.SearchStrategy[list]:
    return st.lists(entries, min_size=stages, max_size=stages)


@st.composite
def arguments_of(draw, cls: type) -> dict:
    """Valid arguments of ``cls``: every one that it takes, apart from ``deploy`` and ``init_cfg``."""
    stages = draw(st.integers(1, 4))
    arch = dict(
        depths=draw(per_stage(stages, st.integers(1, 2))),
        channels=draw(per_stage(stages, st.integers(2, 8))))
    arguments = dict(draw(common_arguments(stages)), arch=arch)
    if cls is SLaK:
        arguments.update(stripe_width=draw(odd(1, 5)), small_kernel=draw(st.none() | st.booleans() | odd(1, 7)))
        arch['kernel_sizes'] = draw(per_stage(stages, odd(arguments['stripe_width'] + 2, 15)))
        return arguments
    arch['center'] = draw(odd(1, 9))
    halves = draw(per_stage(stages, st.one_of(st.none(), HALF_GRIDS)))
    sizes = [draw(odd(arch['center'], 21)) if half is None else 2 * sum(half) - half[-1] for half in halves]
    form = draw(st.sampled_from(['dense', 'grids beside sizes', 'grids as sizes']))
    if form == 'dense':
        arch['kernel_sizes'], arguments['grids'] = [min(size, 9) for size in sizes], 'dense'
    elif form == 'grids beside sizes':
        arch['kernel_sizes'], arguments['grids'] = sizes, halves
    else:
        arch['kernel_sizes'] = [size if half is None else half for size, half in zip(sizes, halves)]
    return dict(
        arguments,
        base=draw(st.integers(1, 4)),
        conv_ratio=draw(st.floats(0.01, 1)),
        small_kernel=draw(st.one_of(st.none(), odd(1, 7))),
        position_embedding=draw(st.booleans()))


def image(arguments: dict, seed: int, batch: int = 2, more: tuple[int, int] = (0, 0)) -> torch.Tensor:
    side = 2**(len(arguments['arch']['depths']) + 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, arguments['in_channels'], side + more[0], side + more[1], generator=generator)


def stage_of(name: str) -> int:
    """The stage that a parameter belongs to; names begin with ``stages.0``, ``downsample_layers.0`` or ``norm0``."""
    first, second = name.split('.')[:2]
    return int(first.removeprefix('norm') if first.startswith('norm') else second)


@MODELS
@FEW
@given(st.data(), st.integers(0, 2**16), st.tuples(st.integers(0, 33), st.integers(0, 33)))
def test_features_and_gradients(cls, data, seed, more):
    arguments = data.draw(arguments_of(cls))
    given_arguments = copy.deepcopy(arguments)
    model = cls(**arguments).train()
    assert arguments == given_arguments, "the caller's arguments were edited"
    stages, frozen = len(arguments['arch']['depths']), arguments['frozen_stages']
    assert model.channels == tuple(int(width * arguments['width_factor']) for width in arguments['arch']['channels'])
    asked = arguments['out_indices']
    indices = sorted({index % stages for index in ([asked] if isinstance(asked, int) else asked)})
    x = image(arguments, seed, more=more)
    outs = model(x)
    assert isinstance(outs, tuple)
    for index, out in zip(indices, outs, strict=True):
        pixels = () if arguments['gap_before_final_norm'] else tuple(side // 2**(index + 2) for side in x.shape[-2:])
        assert out.shape == (2, model.channels[index], *pixels)
        assert out.isfinite().all()
    # Every output takes part, and no sum over channels: a norm would make that a constant.
    sum(out.square().mul(torch.rand(out.shape)).sum() for out in outs).backward()
    for name, parameter in model.named_parameters():
        is_frozen = not name.startswith('norm') and stage_of(name) < frozen
        assert parameter.requires_grad != is_frozen, name
        assert (parameter.grad is not None) == (not is_frozen and stage_of(name) <= indices[-1]), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert len(model.stages) == len(model.downsample_layers) == indices[-1] + 1
    for stage in range(len(model.stages)):
        for module in (*model.stages[stage].modules(), *model.downsample_layers[stage].modules()):
            assert module.training == (stage >= frozen)


@MODELS
@FEW
@given(st.data(), st.integers(0, 2**16), st.tuples(st.integers(0, 33), st.integers(0, 33)))
def test_deployment_changes_no_output(cls, data, seed, more):
    arguments = data.draw(arguments_of(cls))
    model = randomise(cls(**arguments), seed, scale=2).eval().double()
    x = image(arguments, seed, more=more).double()
    before = model(x)
    model.switch_to_deploy()
    after = model(x)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    parameters = {name: value.clone() for name, value in model.state_dict().items()}
    model.switch_to_deploy()
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items()), 'merged twice'
    rebuilt = cls(**arguments, deploy=True).double().eval()
    rebuilt.load_state_dict(parameters)
    assert all(torch.equal(a, b) for a, b in zip(rebuilt(x), after, strict=True))


@MODELS
@FEW
@given(st.data(), st.integers(0, 2**16))
def test_checkpoints_and_copies_are_the_same_model(cls, data, seed):
    arguments = data.draw(arguments_of(cls))
    model = randomise(cls(**arguments), seed, scale=2).eval()
    twin = cls(**arguments).eval()
    twin.load_state_dict(model.state_dict())
    x = image(arguments, seed)
    outs = model(x)
    for other in (twin, copy.deepcopy(model)):
        assert all(torch.equal(a, b) for a, b in zip(other(x), outs, strict=True))
    # One image is what it is in a batch: nothing in a backbone in eval mode mixes them.
    for a, b in zip(model(x[1:]), outs, strict=True):
        torch.testing.assert_close(a, b[1:], rtol=1e-4, atol=1e-5)


@MODELS
@FEW
@given(st.data(), st.booleans())
def test_every_parameter_has_its_depth(cls, data, stage_wise):
    arguments = data.draw(arguments_of(cls))
    stages = len(arguments['arch']['depths'])
    # The third stage of four, which is cut into groups of three blocks.
    arguments['arch']['depths'][max(stages - 2, 0)] = data.draw(st.integers(1, 40))
    model = cls(**arguments)
    depths = {}
    for name, _ in model.named_parameters():
        depth, number = model.get_layer_depth(f'net.{name}', 'net.', stage_wise)
        # Nothing learns faster than what lies outside the backbone.
        assert 0 <= depth < number, name
        assert (depth == number - 1) == name.startswith('norm') or stage_wise and stage_of(name) == stages - 1, name
        # The embedding comes behind the blocks that share it, and is as deep as the first of them.
        kind = 'position_embedding' if 'position_embedding' in name else name.split('.')[0]
        depths.setdefault(kind, []).append(depth)
    assert depths['stages'] == sorted(depths['stages'])
    assert depths['downsample_layers'] == sorted(depths['downsample_layers'])
    assert depths['downsample_layers'][0] == 0
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, LayerNorm2d))]
    sparse = {id(parameter) for parameter in model.get_sparse_parameters().values()}
    assert not sparse & {id(parameter) for norm in norms for parameter in norm.parameters()}
    assert sparse == {id(parameter) for parameter in model.parameters() if parameter.ndim in (2, 4)}


NO_NUMBER = st.sampled_from([None, '1', [1], 1j, math.nan, math.inf, -math.inf])
NO_WHOLE_NUMBER = NO_NUMBER | st.floats(0.1, 5) | st.floats(max_value=-1)
BELOW_1 = st.integers(max_value=0)
EVEN = st.integers(-20, 20).map(lambda half: 2 * half)


def wrong_lists(length: int, entries: st.SearchStrategy, good: int) -> st.SearchStrategy:
    """No list, one of the wrong length, or one with a wrong entry."""
    return st.one_of(
        st.sampled_from([3, '3333', 3.5, {3}, []]),
        st.integers(1, 7).filter(lambda count: count != length).map(lambda count: [good] * count),
        st.tuples(st.integers(0, length - 1), entries).map(
            lambda drawn: [drawn[1] if stage == drawn[0] else good for stage in range(length)]))


SMALL = dict(arch=dict(depths=[1, 1, 1], channels=[4, 6, 8], kernel_sizes=[9, 9, 9]))
WRONG = dict(
    depths=wrong_lists(3, BELOW_1 | NO_WHOLE_NUMBER, 1),
    channels=wrong_lists(3, BELOW_1 | NO_WHOLE_NUMBER, 4),
    kernel_sizes=wrong_lists(3, EVEN | st.integers(max_value=-1) | NO_WHOLE_NUMBER.filter(lambda size: size != [1]), 9),
    in_channels=BELOW_1 | NO_WHOLE_NUMBER,
    width_factor=st.floats(max_value=0.2) | NO_NUMBER.filter(lambda value: value is not None),
    # The narrowest stage has int(1.3 * 4) channels.
    ffn_ratio=st.floats(max_value=0.2, exclude_max=True) | NO_NUMBER,
    drop_path_rate=st.floats(max_value=0, exclude_max=True) | st.floats(1) | NO_NUMBER,
    layer_scale_init_value=st.floats(max_value=0, exclude_max=True) | NO_NUMBER,
    out_indices=wrong_lists(3, st.integers(3) | st.integers(max_value=-4) | NO_WHOLE_NUMBER, 0).filter(
        lambda value: not isinstance(value, list) or len(value) in (0, 3)),
    frozen_stages=st.integers(4) | st.integers(max_value=-1) | NO_WHOLE_NUMBER)
WRONG_FOR = {
    SLaK: dict(
        WRONG,
        stripe_width=EVEN | BELOW_1 | odd(9, 99) | NO_WHOLE_NUMBER,
        small_kernel=EVEN | BELOW_1 | NO_WHOLE_NUMBER.filter(lambda value: value is not None)),
    PeLK: dict(
        WRONG,
        center=EVEN | BELOW_1 | odd(11, 99) | NO_WHOLE_NUMBER.filter(lambda value: value is not None),
        base=BELOW_1 | NO_WHOLE_NUMBER,
        grids=wrong_lists(3, HALF_GRIDS.filter(lambda half: 2 * sum(half) - half[-1] != 9) | st.integers() | EVEN.map(
            lambda size: [size]) | st.sampled_from(['', 1.5, [], [1.5], [None], {9}]), [9]),
        conv_ratio=st.floats(max_value=0) | st.floats(1, exclude_min=True) | NO_NUMBER,
        small_kernel=EVEN | BELOW_1 | NO_WHOLE_NUMBER.filter(lambda value: value is not None))
}


@MODELS
@given(st.data())
def test_wrong_arguments_are_named(cls, data):
    name = data.draw(st.sampled_from(sorted(WRONG_FOR[cls])))
    value = data.draw(WRONG_FOR[cls][name])
    with pytest.raises((ValueError, TypeError), match=name):
        cls(**SMALL, **{name: value})
