"""Complete networks that the benchmarks compare: ours, and peers from timm and mmpretrain.

Every network is a classifier for 1000 classes with random weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from ..nets import PeLK, SLaK
from .operator_methods import SHRUNK

PELK_PAPER = '[PeLK](https://arxiv.org/abs/2403.07589), Table 4'

_GROWN: dict[str, Any] = dict(
    arch=dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768), kernel_sizes=(51, 49, 47, 13), center=7),
    conv_ratio=1, width_factor=1, small_kernel=None, position_embedding=False, branch_norm_layer=None)


@dataclass(frozen=True)
class Network:
    """A network and what is published about it.

    Attributes:
        build (Callable[..., nn.Module]): Makes a backbone of ours from arguments of its class, or a classifier of
            another package from the size of the image.
        mixer (str): Name of the token mixer in every block.
        package (str): The package that has the network; empty for ours.
        top1 (float, optional): Top-1 accuracy on ImageNet-1K, trained on it for 300 epochs at 224 pixels, in per cent.
        source (str): The publication that has it, in Markdown.
    """

    build: Callable[..., nn.Module]
    mixer: str = 'mixer'
    package: str = ''
    top1: float | None = None
    source: str = ''

    @property
    def missing(self) -> str | None:
        """Return why the network cannot be built here; None if it can."""
        if self.package and find_spec(self.package) is None:
            return f'not measured: {self.package} is not installed'
        return None


def _timm(name: str, size: tuple[int, int], **kwargs: Any) -> nn.Module:
    import timm
    return timm.create_model(name, num_classes=1000, **kwargs)


def _swin(size: tuple[int, int]) -> nn.Module:
    return _timm('swin_tiny_patch4_window7_224', size, img_size=size)


def _replknet(size: tuple[int, int]) -> nn.Module:
    from .. import compat
    compat.setup()
    from mmpretrain.utils import dependency

    # Its multimodal models cannot be imported beside transformers 5.
    dependency.WITH_MULTIMODAL = False
    from mmpretrain.models import RepLKNet
    return Classifier(RepLKNet('31B'), 1024)


NETWORKS: dict[str, Network] = {
    'PeLK-T': Network(partial(PeLK, 'tiny'), top1=82.6, source=PELK_PAPER),
    'PeLK-T-101': Network(partial(PeLK, 'tiny-101')),
    'PeLK-T-w1': Network(partial(PeLK, 'tiny-w1')),
    'grown ConvNeXt-T-51': Network(partial(PeLK, **_GROWN)),
    'SLaK-T': Network(partial(SLaK, 'tiny'), top1=82.5,
                      source='[SLaK](https://arxiv.org/abs/2207.03620), [README](https://github.com/VITA-Group/SLaK)'),
    'ConvNeXt-T': Network(partial(_timm, 'convnext_tiny'), 'conv_dw', 'timm', 82.1, PELK_PAPER),
    'InceptionNeXt-T': Network(
        partial(_timm, 'inception_next_tiny'), 'token_mixer', 'timm', 82.3,
        '[InceptionNeXt](https://arxiv.org/abs/2303.16900), abstract: 0.2 above ConvNeXt-T'),
    'Swin-T': Network(_swin, 'attn', 'timm', 81.3, PELK_PAPER),
    'CAFormer-S18': Network(
        partial(_timm, 'caformer_s18'), 'token_mixer', 'timm', 83.6,
        '[MetaFormer baselines](https://arxiv.org/abs/2210.13452), [README](https://github.com/sail-sg/metaformer)'),
    'RepLKNet-31B': Network(_replknet, 'large_kernel', 'mmpretrain', 83.5, PELK_PAPER),
}
"""By name. Token mixers include what the block has in their place: the pointwise layers of CAFormer's separable
convolutions, and the projections of attention, but not how Swin cuts maps into windows."""

# Only for the share of the mixers.
SMALL_KERNELS = Network(partial(PeLK, 'tiny', kernel_sizes=(7, 7, 7, 7), grids='dense'))
"""PeLK-T with dense 7x7 kernels."""


@cache
def find_network(name: str) -> Network:
    """Return an entry of ``NETWORKS``, or the PeLK of an arch."""
    return NETWORKS.get(name) or Network(partial(PeLK, name))


class Classifier(nn.Module):
    """A backbone with average pooling and a linear layer for 1000 classes.

    Args:
        backbone (nn.Module): Returns a sequence of features; the last is (N, C, H, W) or (N, C).
        width (int): C.
    """

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1000)."""
        features = self.backbone(x)[-1]
        return self.head(features if features.ndim == 2 else features.mean((2, 3)))


def build_network(network: Network, size: tuple[int, int], deploy: bool, tiny: bool = False) -> nn.Module:
    """Build a classifier on the CPU, in training mode, or in eval mode with its branches merged.

    Args:
        network (Network): As :func:`find_network` returns it.
        size (tuple[int, int]): Height and width of the images; Swin has one size for all calls.
        deploy (bool): Whether it is for inference.
        tiny (bool): Few channels and blocks, to try code; networks of other packages stay as they are.
    """
    # Random weights take longer to draw than to copy.
    model = copy.deepcopy(_drawn(network, size if network.build is _swin else (224, 224), tiny))
    return _deployed(model) if deploy else model.train()


def build_on_meta(network: Network, size: tuple[int, int], tiny: bool = False) -> nn.Module:
    """Build a deployed classifier without weights, on the meta device; needs MMEngine."""
    from ..analysis.model_building import WeightsOnMeta

    with WeightsOnMeta():
        model = _make(network, size, tiny)
    model.to('meta')
    with WeightsOnMeta():
        return _deployed(model)


@cache
def _drawn(network: Network, size: tuple[int, int], tiny: bool) -> nn.Module:
    return _make(network, size, tiny)


def _make(network: Network, size: tuple[int, int], tiny: bool) -> nn.Module:
    if network.package:
        return network.build(size=size)
    backbone: Any = network.build(**(SHRUNK if tiny else {}))
    return Classifier(backbone, backbone.channels[-1])


def _deployed(model: nn.Module) -> nn.Module:
    model.eval()
    if hasattr(backbone := getattr(model, 'backbone', None), 'switch_to_deploy'):
        backbone.switch_to_deploy()
    return model


def without_mixers(model: nn.Module, network: Network) -> nn.Module:
    """Return a copy of a model in which every token mixer passes its input on."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(getattr(module, network.mixer, None), nn.Module):
            setattr(module, network.mixer, _PassOn())
    return model


class _PassOn(nn.Module):

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


def count_multiply_adds(network: Network, size: tuple[int, int], tiny: bool = False) -> dict[str, int]:
    """Count the multiply-adds of one image, on the meta device; needs MMEngine.

    Args:
        network (Network): As :func:`find_network` returns it.
        size (tuple[int, int]): Height and width of the image.
        tiny (bool): As for :func:`build_network`.

    Returns:
        dict[str, int]: ``dense``, as papers count; ``executed``, with the operations of the peripheral convolution's
        automatic choice on a CPU instead of its dense form, each addition counted like a multiply-add; ``mixers``, of
        the executed ones those in token mixers; and ``parameters`` of the network.
    """
    from ..analysis import count_complexity

    model = build_on_meta(network, size, tiny)
    # It is deployed already.
    total, rest = (count_complexity(each, size, deploy=False).total
                   for each in (model, without_mixers(model, network)))
    return dict(dense=round(total.macs), executed=total.executed, mixers=total.executed - rest.executed,
                parameters=sum(parameter.numel() for parameter in model.parameters()))
