"""The networks without OpenMMLab: by themselves, beside the registered ones, and with the checkpoints of 0.1.0."""

import inspect
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from pelk_mm import nets
from pelk_mm.layers import DepthwiseBranches, DropPath, LayerNorm2d, ReparamDepthwiseConv
from pelk_mm.testing.random_weights import randomise

SMALL = dict(arch=dict(depths=(1, 2), channels=(4, 6), kernel_sizes=(9, 7)))
NETS = pytest.mark.parametrize('name', ['PeLK', 'SLaK'])
SAVED = torch.load(Path(__file__).with_name('checkpoints_0_1_0.pth'))
# Arguments of the plain networks in the place of configs.
CALLABLES = dict(
    norm_cfg=lambda cfg: dict(norm_layer=partial(nn.BatchNorm2d, eps=cfg['eps'])),
    branch_norm_cfg=lambda cfg: dict(branch_norm_layer=cfg and nn.SyncBatchNorm),
    act_cfg=lambda cfg: dict(act_layer=nn.ReLU))


def in_plain_pytorch(arguments):
    plain = {}
    for name, value in arguments.items():
        plain.update(CALLABLES[name](value) if name in CALLABLES else {name: value})
    return plain


@pytest.mark.parametrize('library', ['models', 'nets'])
@pytest.mark.parametrize('case', SAVED)
def test_checkpoints_of_0_1_0(case, library):
    """Written before the networks were moved: the same names in the same order, shapes and outputs, in both forms."""
    saved = SAVED[case]
    arguments = saved['arguments']
    if library == 'models':
        kind = getattr(pytest.importorskip('pelk_mm.models', exc_type=ImportError), saved['type'])
    else:
        kind, arguments = getattr(nets, saved['type']), in_plain_pytorch(arguments)
    for form, ((shapes, values), outputs) in saved['forms'].items():
        net = kind(**arguments, deploy=form == 'deployed').eval()
        assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == shapes
        assert list(net.state_dict()) == list(shapes)
        parts = values.split([torch.Size(shape).numel() for shape in shapes.values()])
        net.load_state_dict({name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)})
        with torch.no_grad():
            for got, right in zip(net(saved['images']), outputs, strict=True):
                torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert max(out.abs().max() for out in outputs) > 0.1


ALONE = '''
import sys
sys.modules.update(dict.fromkeys(('mmengine', 'mmcv', 'mmseg', 'mmdet', 'mmpretrain')))
import torch
from pelk_mm.nets import PeLK
net = PeLK('tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False, drop_path_rate=0.1, with_cp=True)
images = torch.rand(2, 3, 32, 32)
sum(out.square().mean() for out in net(images)).backward()
assert all(parameter.grad is not None for parameter in net.parameters())
print(*(tuple(out.shape) for out in net(images)))
print(sum(parameter.numel() for parameter in net.parameters()), len(net.get_sparse_parameters()))
print(net.get_layer_depth('net.stages.2.blocks.8.gamma', 'net.'), net.get_layer_depth('stages.0.x', '', True))
net.eval()
with torch.no_grad():
    before = net(images)
    net.switch_to_deploy()
    print(max(float((a - b).abs().max()) for a, b in zip(net(images), before)) < 1e-4, len(net.state_dict()))
print(sorted(name for name in sys.modules if name.partition('.')[0] in ('timm', 'numpy.testing', 'torchvision')))
'''


def test_pelk_tiny_with_pytorch_only(root):
    result = subprocess.run([sys.executable, '-c', ALONE], cwd=root, capture_output=True, text=True, check=True)
    shapes, counts, depths, deployed, others = result.stdout.splitlines()
    assert shapes == '(2, 124, 8, 8) (2, 249, 4, 4) (2, 499, 2, 2) (2, 998, 1, 1)'
    # By hand: 18 blocks, the embedding and output norms of four stages, the stem and three downsampling layers.
    parameters, previous = 0, 0
    for depth, c, g, cells, kernel in zip(
            (3, 3, 9, 3), (124, 249, 499, 998), (46, 93, 187, 374), (13, 13, 13, 9), (51, 49, 47, 13)):
        parameters += depth * (8 * c * c + 8 * c + g * (cells**2 + 5**2 + 4)) + g * kernel**2 + 2 * c
        parameters += (4 * previous + 1) * c + 2 * previous if previous else (16 * 3 + 1) * c + 2 * c
        previous = c
    assert counts == f'{parameters} {18 * 4 + 4}'
    assert depths == '(5, 8) (1, 8)'
    # Of a block: gamma, theta and its bias, norm, two pointwise layers; beside it stem, downsampling and norms.
    assert deployed == f'True {18 * 9 + 4 * 4 + 4 * 2}'
    assert others == '[]'


@NETS
def test_the_registered_class_is_the_plain_one_with_the_same_weights(name):
    models = pytest.importorskip('pelk_mm.models', exc_type=ImportError)
    registered, plain = getattr(models, name), getattr(nets, name)
    assert issubclass(registered, (plain, models.LargeKernelNet))
    found = []
    for kind in (registered, plain):
        torch.manual_seed(0)
        net = kind(**SMALL, drop_path_rate=0.4).train()
        found.append((net.state_dict(), net(torch.rand(4, 3, 16, 16))[0]))
    assert list(found[0][0]) == list(found[1][0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    for key, value in found[1][0].items():
        if key.endswith('convs.small.weight') or 'pointwise' in key and value.ndim == 2:
            assert value.std() == pytest.approx(0.02, rel=0.35), key
            assert value.abs().max() < 0.1, key


@NETS
def test_both_take_the_same_arguments(name):
    """Each by its name, none by ``**kwargs``; configs stand where callables stand."""
    models = pytest.importorskip('pelk_mm.models', exc_type=ImportError)
    registered, plain = (inspect.signature(getattr(library, name)).parameters for library in (models, nets))
    assert [parameter.replace('_layer', '_cfg') for parameter in plain] + ['init_cfg'] == list(registered)
    assert not [parameter for parameter in plain.values() if parameter.kind in (2, 4)]
    changed = {key for key in plain if key in registered and registered[key].default != plain[key].default}
    assert changed == set()
    with pytest.raises(TypeError, match='does not take norm_layer=.*BatchNorm2d.*It takes: act_cfg, '):
        getattr(models, name)(norm_layer=nn.BatchNorm2d)


def count(net, kind):
    return sum(type(module) is kind for module in net.modules())


@NETS
@pytest.mark.parametrize('argument, value, before, after', [
    # Stem, downsampling, three blocks and the output; a norm for each convolution of a block.
    ('norm_layer', nn.BatchNorm2d, 0, 6),
    ('norm_layer', lambda channels: nn.GroupNorm(1, channels), 0, 6),
    ('act_layer', nn.SiLU, 0, 3),
    ('act_layer', partial(nn.LeakyReLU, 0.1), 0, 3),
    ('branch_norm_layer', nn.InstanceNorm2d, 0, None),
    ('drop_path_rate', 0.3, 0, 2),
])
def test_callables_make_the_layers(name, argument, value, before, after):
    made = {'drop_path_rate': DropPath}.get(argument) or type(value(1) if argument != 'act_layer' else value())
    nothing = dict(branch_norm_layer=None) if argument == 'norm_layer' else {}
    nets_made = [getattr(nets, name)(**SMALL, **nothing, **given) for given in ({}, {argument: value})]
    convolutions = 3 * (3 if name == 'SLaK' else 2)
    assert [count(net, made) for net in nets_made] == [before, convolutions if after is None else after]
    if argument == 'norm_layer':
        assert count(nets_made[0], LayerNorm2d) == after
        assert count(nets_made[1], LayerNorm2d) == 0
    # Nothing of a lambda stays, so that processes and files take the net.
    twin = pickle.loads(pickle.dumps(nets_made[1]))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(twin.eval()(x), nets_made[1].eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize('argument', ['norm_layer', 'branch_norm_layer', 'act_layer'])
@pytest.mark.parametrize('value', [dict(type='BN'), 'BN', nn.BatchNorm2d(4)], ids=str)
def test_arguments_that_make_no_layers_are_refused(argument, value):
    with pytest.raises(ValueError, match=rf'{argument} must be a class or function .*{re.escape(repr(value))}'):
        nets.PeLK(**SMALL, **{argument: value})


@pytest.mark.parametrize('stripe_width', [3, 5])
@pytest.mark.parametrize('small_kernel, side', [
    (1, 1), (3, 3), (5, 5), (7, 7), (None, None), (False, None), (True, 'stripe')])
def test_small_kernel_is_a_side_in_both(small_kernel, side, stripe_width):
    side = stripe_width if side == 'stripe' else side
    shape = None if side is None else (side, side)
    slak = nets.SLaK(**SMALL, stripe_width=stripe_width, small_kernel=small_kernel)
    plain = [slak] if isinstance(small_kernel, bool) else [slak, nets.PeLK(**SMALL, small_kernel=small_kernel)]
    for net in plain:
        assert net.small_kernel == side
        mixer = next(module for module in net.modules() if isinstance(module, ReparamDepthwiseConv))
        small = dict(mixer.convs.items()).get('small')
        assert (None if small is None else tuple(small.weight.shape[-2:])) == shape
        randomise(net, scale=2).double().eval()
        x = torch.rand(1, 3, 24, 20, dtype=torch.float64)
        before = net(x)[0]
        net.switch_to_deploy()
        torch.testing.assert_close(net(x)[0], before, rtol=1e-9, atol=1e-9)
    # The stripes take in squares of their width at most.
    stays = side is not None and side > stripe_width
    assert ('small' in next(m for m in slak.modules() if isinstance(m, ReparamDepthwiseConv)).convs) == stays


@NETS
@pytest.mark.parametrize('value', [4, 0, -1, 2.0, '5'])
def test_small_kernels_that_are_refused(name, value):
    with pytest.raises(ValueError, match=f'small_kernel must be None or a positive odd number, got {value!r}'):
        getattr(nets, name)(**SMALL, small_kernel=value)


@pytest.mark.parametrize('given, depths, channels', [
    (dict(), (1, 2), (4, 6)),
    (dict(depths=[2, 1]), (2, 1), (4, 6)),
    (dict(channels=[8, 8]), (1, 2), (8, 8)),
    (dict(depths=[1], channels=[8], kernel_sizes=[5]), (1, ), (8, )),
])
@NETS
def test_arguments_take_the_place_of_the_archs(name, given, depths, channels):
    kwargs = dict(stripe_width=3) if name == 'SLaK' else {}
    net = getattr(nets, name)(**SMALL, **given, width_factor=1.0, **kwargs)
    assert (net.depths, net.channels) == (depths, channels)
    assert net.out_channels == channels[-1:]


def test_out_channels_are_those_of_the_outputs():
    for out_indices in ((0, 1), (0, ), -1, (-1, 0)):
        net = nets.PeLK(**SMALL, out_indices=out_indices)
        assert net.out_channels == tuple(out.shape[1] for out in net(torch.rand(2, 3, 32, 32)))


def test_dropped_paths():
    """The share of samples that is dropped, and the mean of the others; nothing in evaluation."""
    torch.manual_seed(0)
    drop, x = DropPath(0.3), torch.ones(4000, 2, 1, 1)
    y = drop(x)
    assert (y[:, 0] == y[:, 1]).all()
    assert (y[:, 0] == 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert torch.equal(drop.eval()(x), x)


def test_dropped_paths_are_those_of_mmcv():
    bricks = pytest.importorskip('mmcv.cnn.bricks')
    x, found = torch.rand(64, 3, 2, 2), []
    for kind in (DropPath, bricks.DropPath):
        torch.manual_seed(0)
        found.append(kind(0.4)(x))
    assert torch.equal(*found)


def test_the_name_of_0_1_0():
    assert DepthwiseBranches is ReparamDepthwiseConv


def test_hooks_of_mixer_and_norm_get_all_channels():
    """Without hooks the norm reads both parts of a block's channels, which are not concatenated."""
    net = nets.PeLK(dict(depths=(1, ), channels=(16, ), kernel_sizes=(9, )), layer_scale_init_value=1.0).eval()
    x, block = torch.randn(1, net.channels[0], 5, 6), net.stages[0].blocks[0]
    before, seen = block(x), []
    for module in (block.mixer, block.norm):
        module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].shape, output.shape)))
    assert torch.equal(block(x), before)
    assert seen == 2 * [(x.shape, x.shape)]
