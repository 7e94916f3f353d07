"""Tiny ConvNeXts of every code base whose names are known, V1 and V2, with random weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.testing.random_weights import randomise

DEPTHS, WIDTHS = (1, 2, 2, 1), (8, 12, 16, 20)


class _ChannelsFirstNorm(nn.LayerNorm):

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ReleasedGRN(nn.Module):

    def __init__(self, width):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1, 1, 1, width)) for _ in range(2))

    def forward(self, x):
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)) + self.beta + x


class _ReleasedBlock(nn.Module):

    def __init__(self, width, v2, kernel):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.GELU()
        if v2:
            self.grn = _ReleasedGRN(4 * width)
        else:
            self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        out = self.act(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))
        out = self.pwconv2(self.grn(out)) if hasattr(self, 'grn') else self.gamma * self.pwconv2(out)
        return x + out.permute(0, 3, 1, 2)


class Released(nn.Module):
    """A classifier with the names of facebookresearch/ConvNeXt and /ConvNeXt-V2, and nothing of their code."""

    def __init__(self, v2, kernel=7, in_channels=3):
        super().__init__()
        self.downsample_layers = nn.ModuleList([
            nn.Sequential(nn.Conv2d(in_channels, WIDTHS[0], 4, stride=4), _ChannelsFirstNorm(WIDTHS[0], eps=1e-6))
        ])
        for before, width in zip(WIDTHS, WIDTHS[1:]):
            self.downsample_layers.append(
                nn.Sequential(_ChannelsFirstNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, stride=2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_ReleasedBlock(width, v2, kernel) for _ in range(depth)))
            for depth, width in zip(DEPTHS, WIDTHS))
        self.norm = nn.LayerNorm(WIDTHS[-1], eps=1e-6)
        self.head = nn.Linear(WIDTHS[-1], 5)

    def forward(self, x):
        for downsample, stage in zip(self.downsample_layers, self.stages):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((-2, -1))))


def _timm(v2, **kwargs):
    convnext = pytest.importorskip('timm.models.convnext')
    return convnext.ConvNeXt(depths=DEPTHS, dims=WIDTHS, num_classes=5, use_grn=v2,
                             ls_init_value=None if v2 else 1e-6, **kwargs)


def timm_features(v2):
    """Build timm's form for dense prediction, whose stages are called otherwise."""
    timm = pytest.importorskip('timm')
    return timm.create_model('test_convnext', features_only=True, use_grn=v2, ls_init_value=None if v2 else 1e-6)


def torchvision_convnext(v2):
    """Build torchvision's; it has no V2."""
    assert not v2
    convnext = pytest.importorskip('torchvision.models.convnext')
    settings = [convnext.CNBlockConfig(*each) for each in zip(WIDTHS, (*WIDTHS[1:], None), DEPTHS)]
    return convnext.ConvNeXt(settings, num_classes=5)


def _mmpretrain():
    try:
        return pytest.importorskip('mmpretrain.models')
    # Of mmpretrain 1.2 and 1.3 beside transformers 5.
    except TypeError as error:
        pytest.skip(f'mmpretrain.models cannot be imported here: {error}')


def mmpretrain_classifier(v2, **kwargs):
    """Build a classifier of mmpretrain."""
    models = _mmpretrain()
    return models.ImageClassifier(
        backbone=dict(type='ConvNeXt', arch=dict(depths=DEPTHS, channels=WIDTHS), use_grn=v2,
                      layer_scale_init_value=0. if v2 else 1e-6, **kwargs),
        neck=None, head=dict(type='LinearClsHead', num_classes=5, in_channels=WIDTHS[-1]))


def mmpretrain_backbone(v2):
    """Build a backbone for dense prediction: a norm for each output, 1x1 convolutions."""
    models = _mmpretrain()
    return models.ConvNeXt(
        dict(depths=DEPTHS, channels=WIDTHS), use_grn=v2, layer_scale_init_value=0. if v2 else 1e-6,
        linear_pw_conv=False, out_indices=(0, 2, 3), gap_before_final_norm=False)


def transformers_convnext(v2, kind='ForImageClassification', **kwargs):
    """Build one of transformers' ConvNeXts."""
    transformers = pytest.importorskip('transformers')
    name = 'ConvNextV2' if v2 else 'ConvNext'
    sizes = dict(depths=list(DEPTHS), hidden_sizes=list(WIDTHS))
    config = getattr(transformers, f'{name}Config')(num_labels=5, **sizes, **kwargs)
    return getattr(transformers, f'{name}{kind}')(config)


SOURCES = {
    'facebookresearch': Released,
    'timm': _timm,
    'timm, conv_mlp': lambda v2: _timm(v2, conv_mlp=True),
    'timm, features_only': timm_features,
    'torchvision': torchvision_convnext,
    'mmpretrain': mmpretrain_classifier,
    'mmpretrain, dense': mmpretrain_backbone,
    'transformers': transformers_convnext,
    'transformers, backbone': lambda v2: transformers_convnext(v2, 'Backbone', out_features=['stage1', 'stage4']),
}


def make_source(name, v2=False, **kwargs):
    """Build one in eval mode with weights with which a mistake shows: GRN and layer scale start near 0."""
    model = randomise(SOURCES[name](v2, **kwargs))
    # That of mmpretrain's backbone returns nothing.
    model.eval()
    for key, value in model.state_dict().items():
        if 'grn' in key:
            value.copy_(0.5 + torch.rand(value.shape, generator=torch.Generator().manual_seed(len(key))))
    return model


def relative(ours, theirs):
    """Return the largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def logits_of(model, images):
    """Return the logits of any of the classifiers."""
    out = model(images)
    return getattr(out, 'logits', out)


def classify(net, head, images):
    """Return the logits of a grown net with the head of its source."""
    return F.linear(net(images)[0], head['head.fc.weight'], head['head.fc.bias'])
