"""The names, and the weights that there are for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from timm.models import build_model_with_cfg, convnext, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from .. import nets
from .model import FIRST_CONV, PeLK, SLaK, TimmNet, checkpoint_filter_fn

# What register_model reads and writes: the pretrained configs of each name, and the names.
default_cfgs: dict[str, Any] = {}
__all__: list[str] = []

# Depths and first width of timm's sizes. V1 and V2 have those that timm knows.
_CONVNEXTS = dict(
    atto=((2, 2, 6, 2), 40), femto=((2, 2, 6, 2), 48), pico=((2, 2, 6, 2), 64), nano=((2, 2, 8, 2), 80),
    tiny=((3, 3, 9, 3), 96), small=((3, 3, 27, 3), 96), base=((3, 3, 27, 3), 128), large=((3, 3, 27, 3), 192),
    xlarge=((3, 3, 27, 3), 256), huge=((3, 3, 27, 3), 352))


def _create(variant: str, cls: type[TimmNet], pretrained: bool, **kwargs: Any) -> nn.Module:
    if pretrained:
        cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay'))
        if not (cfg.has_weights or cfg.state_dict):
            raise RuntimeError(
                f'No pretrained weights exist for {variant}, as nobody has published any of PeLK. Use '
                'pretrained=False, a file of yours with pretrained_cfg_overlay=dict(file=...), or a name such as '
                "pelk_convnext_tiny_51, which starts from ConvNeXt's weights")
    # As in timm: what was trained as a masked autoencoder only has no norm for the head.
    if kwargs.get('pretrained_cfg') == 'fcmae':
        kwargs.setdefault('pretrained_strict', False)
    return build_model_with_cfg(
        cls, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'), **kwargs)


def _register(name: str, cls: type[TimmNet], cfgs: Mapping[str, Any], **arguments: Any) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, cls, pretrained, **{**arguments, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f'Make {cls.__name__}({", ".join(f"{key}={value!r}" for key, value in arguments.items())}).'
    default_cfgs.update(cfgs)
    globals()[name] = register_model(entrypoint)


def _untrained(name: str, **about: str) -> Mapping[str, Any]:
    return generate_default_cfgs({
        f'{name}.untrained': dict(pool_size=(7, 7), first_conv=FIRST_CONV, classifier='head.fc', license='apache-2.0',
                                  **about)
    })


def _grown(name: str, source: str) -> Mapping[str, Any]:
    """Return configs with the weights of a ConvNeXt of timm, under the same tags."""
    known = convnext.default_cfgs[source]
    cfgs = {tag: replace(cfg, first_conv=FIRST_CONV,
                         hf_hub_id=f'timm/{source}.{tag}' if cfg.hf_hub_id == 'timm/' else cfg.hf_hub_id)
            for tag, cfg in known.cfgs.items()}
    return {name: replace(known, cfgs=cfgs)}


def _register_nets() -> None:
    pelk = dict(paper_ids='arXiv:2403.07589',
                paper_name='PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution')
    slak = dict(paper_ids='arXiv:2207.03620',
                paper_name='More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity')
    dense: dict[str, Any] = dict(grids='dense')
    for arch in nets.PeLK.arch_settings:
        name = f'pelk_{arch.replace("-", "_")}'
        _register(name, PeLK, _untrained(name, **pelk), arch=arch)
    for arch in nets.SLaK.arch_settings:
        size, _, width = arch.partition('-')
        ending = f'_{width}' if width else ''
        name = f'pelk_{size}_dense{ending}'
        _register(name, PeLK, _untrained(name, **pelk), arch=arch, **dense)
        name = f'slak_{size}{ending}'
        _register(name, SLaK, _untrained(name, **slak), arch=arch)


def _register_grown() -> None:
    versions = dict(convnext={}, convnextv2=dict(use_grn=True, layer_scale_init_value=0.0))
    plain: dict[str, Any] = dict(center=7, conv_ratio=1, width_factor=1, small_kernel=None, position_embedding=False,
                                 branch_norm_layer=None)
    for (version, more), (size, (depths, width)) in product(versions.items(), _CONVNEXTS.items()):
        source = f'{version}_{size}'
        for kernels, kernel_sizes in (('51', (51, 49, 47, 13)), ('101', (101, 69, 67, 13))):
            name = f'pelk_{source}_{kernels}'
            arch = dict(depths=depths, channels=tuple(width * 2**stage for stage in range(4)),
                        kernel_sizes=kernel_sizes)
            if source in convnext.default_cfgs:
                _register(name, PeLK, _grown(name, source), arch=arch, **plain, **more)


_register_nets()
_register_grown()
