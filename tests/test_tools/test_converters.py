"""The converters and publish_model, run as a user runs them."""

import argparse
import hashlib
from collections import OrderedDict

import pytest
import torch
from torch import nn

from pelk_mm.checkpoints.convert import CONVNEXT_NAMES, convert_file, rename
from pelk_mm.models import SLaK
from pelk_mm.testing.random_weights import randomise
from pelk_mm.version import __version__

from ..test_nets.convnexts import DEPTHS, WIDTHS, Released, logits_of, make_source, mmpretrain_classifier

KERNELS = (11, 9, 9, 7)


@pytest.fixture
def convert(printed_by):
    """Runs a converter with arguments and returns what it prints."""
    return lambda name, *arguments: printed_by(f'model_converters/{name}', *arguments)


class ReleasedMixer(nn.ModuleDict):
    """SLaK's two stripes and small kernel, each with a BatchNorm, added up."""

    def __init__(self, width, kernel):
        super().__init__()
        for name, size in dict(LoRA1=(kernel, 5), LoRA2=(5, kernel), small_conv=(5, 5)).items():
            conv = nn.Conv2d(width, width, size, padding=(size[0] // 2, size[1] // 2), groups=width, bias=False)
            self[name] = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(width)))

    def forward(self, x):
        return sum(branch(x) for branch in self.values())


def released_slak():
    """A classifier of SLaK's repository, written out, and its weights by their names there."""
    model = Released(v2=False)
    for stage, width, kernel in zip(model.stages, WIDTHS, KERNELS):
        for block in stage:
            block.dwconv = ReleasedMixer(width, kernel)
    randomise(model.eval())
    return model, {name.replace('dwconv', 'large_kernel'): value for name, value in model.state_dict().items()}


class Classifier(nn.Module):
    """The names of mmpretrain's classifier."""

    def __init__(self):
        super().__init__()
        self.backbone = SLaK(dict(depths=DEPTHS, channels=WIDTHS, kernel_sizes=KERNELS), width_factor=1.0)
        self.head = nn.ModuleDict(dict(fc=nn.Linear(WIDTHS[-1], 5)))

    def forward(self, x):
        return self.head['fc'](self.backbone(x)[0])


def test_released_slak_gives_the_same_logits(tmp_path, convert):
    released, weights = released_slak()
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
        torch.testing.assert_close(model.eval()(x), released(x))


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


def test_released_convnext_gives_the_same_logits_in_mmpretrain(tmp_path, convert):
    released, model = make_source('facebookresearch'), mmpretrain_classifier(v2=False)
    torch.save(dict(model=released.state_dict(), model_ema={}), tmp_path / 'convnext.pth')
    done = convert('convnext_to_mmpretrain.py', tmp_path / 'convnext.pth', tmp_path / 'converted.pth')
    assert 'left out' not in done, done
    model.load_state_dict(torch.load(tmp_path / 'converted.pth', weights_only=True)['state_dict'], strict=True)
    x = torch.rand(2, 3, 64, 68, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model.eval(), x), logits_of(released, x))
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


def test_key_and_weights_exclude_each_other(tmp_path, printed_by):
    torch.save(dict(model=released_slak()[1]), tmp_path / 'slak.pth')
    arguments = tmp_path / 'slak.pth', tmp_path / 'new.pth'
    options = '--key', 'model', '--weights', 'raw'
    printed = printed_by('model_converters/slak_to_pelk_mm.py', *arguments, *options, code=2)
    message = "key names an entry and {0}weights finds it: give one of them, got 'model' and 'raw'"
    assert f'--{message.format("--")}' in printed
    with pytest.raises(ValueError, match=f'^{message.format("")}$'):
        convert_file(*map(str, arguments), CONVNEXT_NAMES, key='model', weights='raw')
    assert not arguments[1].exists()


def test_two_names_must_not_become_one():
    with pytest.raises(ValueError, match=r'would become backbone\.norm3\.weight, one of them is backbone\.norm3'):
        rename({'norm.weight': torch.zeros(1), 'backbone.norm3.weight': torch.ones(1)}, CONVNEXT_NAMES)


def test_nothing_is_overwritten(tmp_path, convert):
    torch.save(dict(model=released_slak()[1]), tmp_path / 'slak.pth')
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
