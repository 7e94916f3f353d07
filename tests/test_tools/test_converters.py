"""The converters and publish_model, run as a user runs them."""

import argparse
import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.checkpoints.convert import CONVNEXT_NAMES, convert_file, rename
from pelk_mm.models import SLaK
from pelk_mm.version import __version__

DEPTHS, WIDTHS, KERNELS = (1, 2, 1, 1), (8, 12, 16, 20), (11, 9, 9, 7)


@pytest.fixture
def convert(run_tool):
    """Runs a converter with arguments and returns what it prints."""

    def run(name, *arguments):
        code, printed = run_tool(f'model_converters/{name}', *arguments)
        assert code == 0, printed
        return printed

    return run


def released_slak():
    """A classifier with the names, and nothing of the code, of SLaK's repository."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    def norm(name, width, running=False):
        weights = {f'{name}.weight': 1 + rand(width), f'{name}.bias': rand(width)}
        if running:
            weights.update({
                f'{name}.running_mean': rand(width),
                f'{name}.running_var': 0.5 + rand(width)**2,
                f'{name}.num_batches_tracked': torch.tensor(7)
            })
        return weights

    weights = {}
    previous = 3
    for stage, (depth, width, kernel) in enumerate(zip(DEPTHS, WIDTHS, KERNELS)):
        position, patch = (0, 4) if stage == 0 else (1, 2)
        name = f'downsample_layers.{stage}'
        weights[f'{name}.{position}.weight'] = rand(width, previous, patch, patch)
        weights[f'{name}.{position}.bias'] = rand(width)
        weights.update(norm(f'{name}.{1 - position}', previous if stage else width))
        previous = width
        for block in range(depth):
            name = f'stages.{stage}.{block}'
            for part, shape in dict(LoRA1=(kernel, 5), LoRA2=(5, kernel), small_conv=(5, 5)).items():
                weights[f'{name}.large_kernel.{part}.conv.weight'] = rand(width, 1, *shape)
                weights.update(norm(f'{name}.large_kernel.{part}.bn', width, running=True))
            weights.update(norm(f'{name}.norm', width))
            weights[f'{name}.gamma'] = rand(width)
            for number, (outputs, inputs) in enumerate(((4 * width, width), (width, 4 * width)), 1):
                weights[f'{name}.pwconv{number}.weight'] = rand(outputs, inputs)
                weights[f'{name}.pwconv{number}.bias'] = rand(outputs)
    weights.update(norm('norm', previous))
    weights['head.weight'], weights['head.bias'] = rand(10, previous), rand(10)
    return weights


def plain_slak(weights, x):
    """The released network, written out: logits of images."""

    def layer_norm(x, name):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, x.shape[-1:], weights[f'{name}.weight'], weights[f'{name}.bias'], 1e-6)
        return x.permute(0, 3, 1, 2)

    def linear(x, name):
        return F.linear(x, weights[f'{name}.weight'], weights[f'{name}.bias'])

    for stage, depth in enumerate(DEPTHS):
        name = f'downsample_layers.{stage}'
        if stage:
            x = layer_norm(x, f'{name}.0')
            x = F.conv2d(x, weights[f'{name}.1.weight'], weights[f'{name}.1.bias'], stride=2)
        else:
            x = F.conv2d(x, weights[f'{name}.0.weight'], weights[f'{name}.0.bias'], stride=4)
            x = layer_norm(x, f'{name}.1')
        for block in range(depth):
            name, shortcut, mixed = f'stages.{stage}.{block}', x, 0
            for part in ('LoRA1', 'LoRA2', 'small_conv'):
                kernel = weights[f'{name}.large_kernel.{part}.conv.weight']
                branch = F.conv2d(x, kernel, padding=tuple(side // 2 for side in kernel.shape[2:]), groups=x.shape[1])
                norm = [weights[f'{name}.large_kernel.{part}.bn.{key}']
                        for key in ('running_mean', 'running_var', 'weight', 'bias')]
                mixed = mixed + F.batch_norm(branch, *norm)
            x = layer_norm(mixed, f'{name}.norm').permute(0, 2, 3, 1)
            x = linear(F.gelu(linear(x, f'{name}.pwconv1')), f'{name}.pwconv2') * weights[f'{name}.gamma']
            x = shortcut + x.permute(0, 3, 1, 2)
    x = F.layer_norm(x.mean((2, 3)), WIDTHS[-1:], weights['norm.weight'], weights['norm.bias'], 1e-6)
    return linear(x, 'head')


class Classifier(nn.Module):
    """The names of mmpretrain's classifier."""

    def __init__(self):
        super().__init__()
        self.backbone = SLaK(dict(depths=DEPTHS, channels=WIDTHS, kernel_sizes=KERNELS), width_factor=1.0)
        self.head = nn.ModuleDict(dict(fc=nn.Linear(WIDTHS[-1], 10)))

    def forward(self, x):
        return self.head['fc'](self.backbone(x)[0])


def test_released_slak_gives_the_same_logits(tmp_path, convert):
    weights = released_slak()
    # As released: beside the weights the optimiser's state and the arguments of the command line.
    source = dict(model=weights, optimizer=dict(state={}), epoch=299, args=argparse.Namespace(lr=4e-3))
    torch.save(source, tmp_path / 'slak.pth')
    done = convert('slak_to_pelk_mm.py', tmp_path / 'slak.pth', tmp_path / 'new/converted.pth')
    assert f'{len(weights)} tensors written' in done
    assert 'left out' not in done

    model = Classifier()
    model.load_state_dict(torch.load(tmp_path / 'new/converted.pth', weights_only=True)['state_dict'], strict=True)
    x = torch.rand(2, 3, 64, 68, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain_slak(weights, x))


def test_released_segmentor_and_unknown_names(tmp_path, convert):
    weights = {
        'backbone.stages.2.5.large_kernel.LoRA2.bn.running_mean': torch.rand(3),
        'backbone.norm1.weight': torch.rand(3),
        'decode_head.conv_seg.weight': torch.rand(3),
        'backbone.stages.0.0.large_kernel.lkb_reparam.weight': torch.rand(3),
        'mystery': torch.rand(1),
    }
    torch.save(dict(state_dict=weights), tmp_path / 'slak.pth')
    done = convert('slak_to_pelk_mm.py', tmp_path / 'slak.pth', tmp_path / 'converted.pth')
    converted = torch.load(tmp_path / 'converted.pth', weights_only=True)['state_dict']
    assert set(converted) == {
        'backbone.stages.2.blocks.5.mixer.norms.horizontal.running_mean', 'backbone.norm1.weight',
        'decode_head.conv_seg.weight'
    }
    assert [line for line in done.splitlines() if 'left out' in line] == [
        'not converted, left out: backbone.stages.0.0.large_kernel.lkb_reparam.weight',
        'not converted, left out: mystery'
    ]


def test_released_convnext_loads_into_mmpretrains(tmp_path, convert):
    mmpretrain = pytest.importorskip('mmpretrain.models.backbones')
    backbone = mmpretrain.ConvNeXt(dict(depths=[1, 2, 1, 1], channels=[8, 12, 16, 20]))
    expected = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    expected.update({'head.fc.weight': torch.rand(10, 20), 'head.fc.bias': torch.rand(10)})
    ours_to_theirs = {
        'backbone.norm3.': 'norm.', 'head.fc.': 'head.', 'backbone.': '', 'depthwise_conv': 'dwconv',
        'pointwise_conv': 'pwconv'
    }
    released = {}
    for name, value in expected.items():
        for ours, theirs in ours_to_theirs.items():
            name = name.replace(ours, theirs)
        released[name] = value
    assert 'stages.1.1.dwconv.weight' in released
    assert 'norm.weight' in released
    torch.save(dict(model=released, model_ema={}), tmp_path / 'convnext.pth')
    done = convert('convnext_to_mmpretrain.py', tmp_path / 'convnext.pth', tmp_path / 'converted.pth')
    assert 'left out' not in done, done
    converted = torch.load(tmp_path / 'converted.pth', weights_only=True)['state_dict']
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    for key, message in dict(model_ema='no name in', module='key must be an entry of').items():
        with pytest.raises(ValueError, match=message):
            convert('convnext_to_mmpretrain.py', tmp_path / 'convnext.pth', tmp_path / 'ema.pth', '--key', key)
    assert not (tmp_path / 'ema.pth').exists()


def test_backbone_is_taken_out_of_a_classifier(tmp_path, convert):
    model = Classifier()
    torch.save(dict(meta={}, state_dict=model.state_dict()), tmp_path / 'classifier.pth')
    done = convert('classifier_to_backbone.py', tmp_path / 'classifier.pth', tmp_path / 'backbone.pth')
    weights = torch.load(tmp_path / 'backbone.pth', weights_only=True)['state_dict']
    model.backbone.load_state_dict(weights, strict=True)
    assert 'not converted, left out: head.fc.weight' in done


def test_key_and_weights_exclude_each_other(tmp_path, run_tool):
    torch.save(dict(model=released_slak()), tmp_path / 'slak.pth')
    arguments = tmp_path / 'slak.pth', tmp_path / 'new.pth'
    code, printed = run_tool('model_converters/slak_to_pelk_mm.py', *arguments, '--key', 'model', '--weights', 'raw')
    assert code == 2
    message = "key names an entry and {0}weights finds it: give one of them, got 'model' and 'raw'"
    assert f'--{message.format("--")}' in printed
    with pytest.raises(ValueError, match=f'^{message.format("")}$'):
        convert_file(*map(str, arguments), CONVNEXT_NAMES, key='model', weights='raw')
    assert not arguments[1].exists()


def test_two_names_must_not_become_one():
    with pytest.raises(ValueError, match=r'would become backbone\.norm3\.weight, one of them is backbone\.norm3'):
        rename({'norm.weight': torch.zeros(1), 'backbone.norm3.weight': torch.ones(1)}, CONVNEXT_NAMES)


def test_nothing_is_overwritten(tmp_path, convert):
    torch.save(dict(model=released_slak()), tmp_path / 'slak.pth')
    (tmp_path / 'mine.pth').write_text('precious')
    with pytest.raises(FileExistsError, match='exists and is not overwritten'):
        convert('slak_to_pelk_mm.py', tmp_path / 'slak.pth', tmp_path / 'mine.pth')
    assert (tmp_path / 'mine.pth').read_text() == 'precious'


def test_published_checkpoint_keeps_only_weights_with_zeros_and_meta(tmp_path, convert):
    weight = torch.randn(6, 7)
    weight[weight < 0] = 0
    # A view, as slicing leaves it: only what it shows is published.
    large = torch.zeros(1000, 1000)
    checkpoint = dict(
        meta=dict(epoch=3, cfg='a = 1', mmengine_version='0.10.7', dataset_meta=dict(classes=('a', 'b'))),
        state_dict=dict(weight=weight, view=large[:2]),
        optimizer=dict(state={}),
        param_schedulers=[],
        message_hub=dict(log_scalars={}),
        ema_state_dict={},
        dynamic_sparsity=dict(step=3, masks={}))
    torch.save(checkpoint, tmp_path / 'epoch_3.pth')
    done = convert('publish_model.py', tmp_path / 'epoch_3.pth', tmp_path / 'pelk.pth')
    assert 'without dynamic_sparsity, ema_state_dict, message_hub, optimizer, param_schedulers' in done
    path, = tmp_path.glob('pelk-*.pth')
    assert path.stem == f'pelk-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}'
    published = torch.load(path, weights_only=True)
    assert set(published) == {'meta', 'state_dict'}
    versions = dict(pelk_mm_version=__version__, torch_version=str(torch.__version__))
    assert published['meta'] == dict(checkpoint['meta'], **versions)
    assert 'lacks' not in done
    assert torch.equal(published['state_dict']['weight'], weight)
    assert path.stat().st_size < 100_000
    with pytest.raises(FileExistsError, match='exists and is not overwritten'):
        convert('publish_model.py', tmp_path / 'epoch_3.pth', tmp_path / 'pelk.pth')
    torch.save(dict(state_dict=dict(weight=weight)), tmp_path / 'bare.pth')
    done = convert('publish_model.py', tmp_path / 'bare.pth', tmp_path / 'bare.pth')
    assert 'its meta data lacks cfg, dataset_meta, mmengine_version' in done
