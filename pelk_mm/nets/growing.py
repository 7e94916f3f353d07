"""Grow a pretrained ConvNeXt into a large-kernel network that computes the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..layers import LayerNorm2d, PeripheralConv2d
from ..layers.peripheral_conv import check_convertible, embed_kernel
from ..module_names import clean_name
from .arguments import one_per_stage
from .convnext_names import NAMINGS, OURS, Naming, fill
from .pelk import PeLK
from .weight_files import find_state_dict, read_weights

# Arguments of PeLK that the source decides.
_DECIDED = ('arch', 'branch_norm_layer', 'channels', 'conv_ratio', 'deploy', 'depths', 'ffn_ratio', 'grids',
            'layer_scale_init_value', 'small_kernel', 'use_grn', 'width_factor')

# Of ConvNeXts that do not have 1e-6, by their depths: timm's xxlarge, which is CLIP's.
_NORM_EPS = {(3, 4, 30, 3): 1e-5}


class ConvNeXtWeights(NamedTuple):
    """The weights of a ConvNeXt by the names of :class:`PeLK`.

    Attributes:
        backbone (dict[str, Tensor]): Names of ``PeLK(conv_ratio=1, small_kernel=None, branch_norm_layer=None,
            position_embedding=False)``; depthwise kernels (C, 1, k, k) as they were, pointwise ones (C_out, C_in).
        head (dict[str, Tensor]): Everything else. The classifier's linear layer is ``head.fc``, which is its name in
            mmpretrain and timm; other names stay.
        arch (dict): ``depths``, ``channels``, ``kernel_sizes`` (k of each stage, the largest of its blocks),
            ``in_channels``, ``ffn_ratio``, ``use_grn``, ``layer_scale_init_value`` (0 where there is no layer scale)
            and ``norm_before_pooling`` (whether the classifier norms before it averages the pixels).
        naming (str): Whose names the source has, a key of :data:`pelk_mm.nets.convnext_names.NAMINGS`.
    """

    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    arch: dict[str, Any]
    naming: str


def grow_convnext(source: nn.Module | Mapping | str | Path,
                  kernel_sizes: Sequence[int | Sequence[int]] = (51, 49, 47, 13),
                  *,
                  center: int | None = None,
                  base: int = 2,
                  position_embedding: bool = False,
                  prefix: str | None = None,
                  **kwargs: Any) -> PeLK:
    """Grow a ConvNeXt, V1 or V2, into a :class:`PeLK` with larger kernels that computes the same.

    The centre of each peripheral kernel is the source's kernel, its outer cells are zero; training fills them. Depths,
    widths and kernels are read from the weights, so every size fits. An output's norm is the source's; of a classifier
    the final norm becomes the last stage's. Where the source has none it starts as 1 and 0, and a warning names it.

    A state dict has neither the epsilon of its norms nor its activation: ConvNeXt's, 1e-6 and GELU, are assumed (1e-5
    for timm's xxlarge) unless ``norm_layer`` or ``act_layer`` is given. Those of a model are taken over.

    Args:
        source (nn.Module | Mapping | str | Path): Model, state dict, checkpoint with one, or file (see
            :func:`~pelk_mm.nets.weight_files.read_weights`) with the names of facebookresearch, timm, torchvision,
            mmpretrain or transformers; the ConvNeXt may be a part of it, e.g. a segmentor's backbone.
        kernel_sizes (Sequence[int | Sequence[int]]): K of each stage, at least the source's, or explicit half grids.
            Defaults to PeLK's (51, 49, 47, 13).
        center (int, optional): Side of the fine-grained centre. Defaults to 7; it grows to the source's kernel.
        base (int): Growth of the cells outside the centre. Defaults to 2.
        position_embedding (bool): Whether to add the kernel-wise positional embedding, which starts at zero. Defaults
            to False.
        prefix (str, optional): What precedes the ConvNeXt's names in the source, e.g. ``'backbone.'``; found by
            default.
        **kwargs (Any): Other arguments of :class:`PeLK` and :class:`LargeKernelNet`, e.g. ``out_indices``,
            ``gap_before_final_norm``, ``drop_path_rate``.

    Returns:
        PeLK: In training mode; of the dtype and on the device of a model, else PyTorch's default ones.

    Raises:
        ValueError: If the source is no ConvNeXt, a name is missing or unknown, it has a part that a PeLK cannot have
            (the message says which), or an argument contradicts it.

    Examples:
        >>> import torch
        >>> from torchvision.models import convnext_tiny
        >>> from pelk_mm.nets import grow_convnext
        >>> net = grow_convnext(convnext_tiny(), drop_path_rate=0.1).eval()
        >>> net.grids[0].kernel_size, net(torch.rand(1, 3, 64, 64))[0].shape
        (51, torch.Size([1, 768]))
    """
    decided = sorted({*kwargs} & {*_DECIDED})
    if decided:
        raise ValueError(f'the source decides {", ".join(decided)}: leave out what grow_convnext cannot choose')
    weights = convnext_state_dict(source, prefix)
    model = _Model(source, prefix) if isinstance(source, nn.Module) else None
    net = _pelk_like(weights.arch, model, kernel_sizes, center, base=base, position_embedding=position_embedding,
                     **kwargs)
    _load_grown(net, weights.backbone)
    if model is not None:
        if 'norm_layer' not in kwargs:
            model.copy_eps(net)
        net.to(next(source.parameters()))
    return net


def _pelk_like(arch: Mapping[str, Any], model: _Model | None, kernel_sizes: Sequence[int | Sequence[int]],
               center: int | None, **kwargs: Any) -> PeLK:
    """Return a PeLK of the source's sizes with larger kernels and new weights."""
    if kwargs.setdefault('in_channels', arch['in_channels']) != arch['in_channels']:
        raise ValueError(f'in_channels must be that of the stem of the source, {arch["in_channels"]}, got '
                         f'{kwargs["in_channels"]}')
    kwargs.setdefault('norm_layer', partial(LayerNorm2d, eps=_NORM_EPS.get(arch['depths'], 1e-6)))
    if model is not None:
        model.check_convolutions(len(arch['depths']))
        kwargs.setdefault('act_layer', model.activation)
    sizes = one_per_stage('kernel_sizes', kernel_sizes, len(arch['depths']))
    for stage, (size, held) in enumerate(zip(sizes, arch['kernel_sizes'])):
        if isinstance(size, int) and size < held:
            raise ValueError(f'kernel_sizes must hold the kernels of the source, {held} x {held} in stage {stage}, got '
                             f'{size}')
    net = PeLK(
        dict(depths=arch['depths'], channels=arch['channels'], kernel_sizes=sizes,
             center=max(7 if center is None else center, *arch['kernel_sizes'])),
        conv_ratio=1, width_factor=1, small_kernel=None, ffn_ratio=arch['ffn_ratio'], branch_norm_layer=None,
        use_grn=arch['use_grn'], layer_scale_init_value=arch['layer_scale_init_value'], **kwargs)
    if arch['norm_before_pooling'] and net.gap_before_final_norm and net.out_indices[-1] == net.num_stages - 1:
        raise ValueError('the classifier of the source norms before it averages the pixels (timm: head_norm_first), '
                         'which gap_before_final_norm=True does not: pass False and average the output')
    return net


def _load_grown(net: PeLK, backbone: Mapping[str, Tensor]) -> None:
    state, fresh = grown_state_dict(net, backbone)
    net.load_state_dict(state)
    if fresh:
        warnings.warn(f'the source has no {", ".join(fresh)}: such norms of outputs start as weight 1 and bias 0',
                      stacklevel=3)


def convnext_state_dict(source: nn.Module | Mapping | str | Path, prefix: str | None = None) -> ConvNeXtWeights:
    """Return the weights of a ConvNeXt by the names of :class:`PeLK`, those of its head, and its architecture.

    Args:
        source (nn.Module | Mapping | str | Path): As for :func:`grow_convnext`.
        prefix (str, optional): What precedes the ConvNeXt's names; found by default.

    Raises:
        ValueError: If the source is no ConvNeXt, a name is missing or unknown, or it has a part that a PeLK cannot
            have; the message says which.
    """
    tensors = _named_tensors(source)
    whose, prefix = _find_naming(tensors, prefix, NAMINGS)
    naming = NAMINGS[whose]
    inside = {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}
    stem = inside[f'{naming.stem[0]}.weight']
    if stem.shape[2:] != (4, 4):
        raise ValueError(f'the stem of the source must be one 4 x 4 convolution of stride 4, {prefix}{naming.stem[0]} '
                         f'has a kernel of {" x ".join(map(str, stem.shape[2:]))}: an overlapping stem or one of '
                         'other patches has no equivalent in PeLK')
    depths = _depths(naming, inside)
    names = dict(_expected(naming, inside, depths))
    missing = [f'{prefix}{name}' for name in names if name not in inside]
    if missing:
        raise ValueError(f'the source has the names of {whose}, but lacks {_shorten(missing)} (without biases, or with '
                         'a norm other than LayerNorm, there is no equivalent in PeLK)')
    head, unknown = {}, []
    for name, value in tensors.items():
        short = name[len(prefix):] if name.startswith(prefix) else None
        layer, _, parameter = (name if short is None else short).rpartition('.')
        if layer == naming.classifier:
            head[f'{OURS.classifier}.{parameter}'] = value
        elif short is None or short.startswith(('head.', 'classifier.')) and short not in names:
            head[name] = value
        elif short not in names:
            unknown.append(name)
    if unknown:
        raise ValueError(f'the source has the names of {whose}, and others that nothing here corresponds to: '
                         f'{_shorten(unknown)}')
    backbone = {ours: _as_ours(ours, inside[name]) for name, ours in names.items()}
    for name, ours in names.items():
        shape = tuple(backbone[ours].shape)
        if ours.endswith(f'{OURS.mixer}.weight') and shape[1:] != (1, shape[-1] | 1, shape[-1] | 1):
            raise ValueError(f'the kernels of the source must be depthwise, odd and square, {prefix}{name} has the '
                             f'shape {shape}')
    return ConvNeXtWeights(backbone, head, _arch(backbone, depths, 'norm_pre.weight' in inside), whose)


def grown_state_dict(net: PeLK, backbone: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict with which a net computes the same as a ConvNeXt.

    Args:
        net (PeLK): As :func:`grow_convnext` builds it.
        backbone (Mapping[str, Tensor]): From :func:`convnext_state_dict`.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The state dict, and the norms of outputs that the source has not, which are
        in it with weight 1 and bias 0.

    Raises:
        ValueError: If a kernel does not fit into the centre of its grid, or a shape differs.
    """
    state = {name: value for name, value in backbone.items() if not net.is_of_unbuilt_stage(name)}
    fresh = []
    for name, module in net.named_modules():
        if isinstance(module, PeripheralConv2d) and f'{name}.weight' in state:
            try:
                state[f'{name}.weight'] = embed_kernel(state[f'{name}.weight'], module.grid)
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
    for name, value in net.state_dict().items():
        if name.startswith('norm') and name not in state:
            state[name] = torch.ones_like(value) if name.endswith('weight') else torch.zeros_like(value)
            fresh += [name.partition('.')[0]] * name.endswith('.weight')
        elif name.endswith('position_embedding.weight'):
            state[name] = torch.zeros_like(value)
        if name in state and state[name].shape != value.shape:
            raise ValueError(f'{name} must have the shape {tuple(value.shape)}, got {tuple(state[name].shape)}')
    return state, fresh


@torch.no_grad()
def compare_features(source: nn.Module, net: nn.Module, images: Tensor, prefix: str | None = None) -> list[float]:
    """Return the largest difference at the end of each stage, as a share of the largest value of the source there.

    Args:
        source (nn.Module): A ConvNeXt, or a model that contains one, with the names that :func:`grow_convnext` knows;
            or a net of ours.
        net (nn.Module): The grown net. Both must be in eval mode.
        images (Tensor): (N, in_channels, H, W).
        prefix (str, optional): What precedes the ConvNeXt's names in ``source``; found by default.

    Returns:
        list[float]: One for each stage that ``net`` has.

    Raises:
        ValueError: If one of them is in training mode, or ``source`` is no ConvNeXt.
    """
    if source.training or net.training:
        raise ValueError('both networks must be in eval mode: call .eval(), else drop path makes a difference')
    features = []
    for model, where in ((source, prefix), (net, '')):
        part = _Model(model, where)
        features.append(part.stage_outputs(images))
    return [float((ours - theirs).abs().max() / theirs.abs().max()) for theirs, ours in zip(*features)]


class _Model:
    """A ConvNeXt as a part of a model."""

    def __init__(self, model: nn.Module, prefix: str | None) -> None:
        namings = {**NAMINGS, 'pelk_mm': OURS}
        whose, prefix = _find_naming(_named_tensors(model), prefix, namings)
        self.naming = namings[whose]
        modules = {clean_name(name): module for name, module in model.named_modules()}
        self.root = modules[prefix.rstrip('.')]
        self.modules = {name[len(prefix):]: module for name, module in modules.items() if name.startswith(prefix)}

    @property
    def activation(self) -> Callable[[], nn.Module]:
        """Factory of an activation like that of the first block."""
        act = self.modules[f'{fill(self.naming.block, 0)}.{self.naming.act}']
        exact = type(act).__name__ in ('GELU', 'GELUActivation') and getattr(act, 'approximate', 'none') == 'none'
        return nn.GELU if exact else partial(copy.deepcopy, act)

    def check_convolutions(self, stages: int) -> None:
        """Raise where a convolution has strides or dilations that its weight does not show."""
        for name, module in self.modules.items():
            if name.endswith(f'.{self.naming.mixer}') and isinstance(module, nn.Conv2d):
                check_convertible(module, name)
        for name, _ in self.naming.outer_parts(stages):
            conv = self.modules[name]
            if isinstance(conv, nn.Conv2d) and (conv.stride != conv.kernel_size or conv.dilation != (1, 1)):
                raise ValueError(f'{name} must have the stride of its kernel {conv.kernel_size} and no dilation, got '
                                 f'stride {conv.stride} and dilation {conv.dilation}')

    def copy_eps(self, net: PeLK) -> None:
        """Give each norm of a net the epsilon of the source's."""
        own = dict(net.named_modules())
        for theirs, ours in _parts(self.naming, net.depths):
            if ours in own and hasattr(self.modules.get(theirs), 'eps'):
                cast(Any, own[ours]).eps = cast(Any, self.modules[theirs]).eps

    def stage_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the output of each stage, before its norm."""
        outputs: list[Tensor] = []
        handles = []
        for stage in range(len(self.modules)):
            module = self.modules.get(fill(self.naming.stage, stage))
            if module is None:
                break
            handles.append(module.register_forward_hook(lambda module, args, output: outputs.append(output)))
        try:
            self.root(images)
        finally:
            for handle in handles:
                handle.remove()
        return outputs


def _named_tensors(source: nn.Module | Mapping | str | Path) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        tensors = source.state_dict()
    else:
        tensors = find_state_dict(read_weights(source) if isinstance(source, (str, Path)) else source)
    return {clean_name(name): value for name, value in tensors.items()}


def _find_naming(tensors: Mapping[str, Tensor], prefix: str | None,
                 namings: Mapping[str, Naming]) -> tuple[str, str]:
    """Return whose names these are, and what precedes them."""
    found = []
    for whose, naming in namings.items():
        stem, mixer = f'{naming.stem[0]}.weight', f'{fill(naming.block, 0)}.{naming.mixer}.weight'
        for name in tensors:
            start = name.removesuffix(stem)
            if start != name and (not start or start.endswith('.')) and f'{start}{mixer}' in tensors:
                found.append((whose, start))
    chosen = [each for each in found if prefix is None or each[1] == prefix]
    if not chosen:
        raise ValueError(f'the source has no ConvNeXt with the names of {", ".join(namings)}'
                         + (f' under the prefix {prefix!r}' if prefix is not None else '')
                         + f'; its first names are {_shorten(list(tensors))}')
    if len(chosen) > 1:
        raise ValueError(f'the source has {len(chosen)} ConvNeXts, under {[start for _, start in chosen]}: say by '
                         'prefix which one')
    return chosen[0]


def _depths(naming: Naming, inside: Mapping[str, Tensor]) -> tuple[int, ...]:
    depths: list[int] = []
    while True:
        depth = 0
        while f'{fill(naming.block, len(depths), depth)}.{naming.mixer}.weight' in inside:
            depth += 1
        if not depth:
            return tuple(depths)
        depths.append(depth)


def _parts(naming: Naming, depths: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield every module with a weight and a bias, with its name here."""
    yield from naming.outer_parts(len(depths))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            yield from naming.block_parts(stage, block)
    yield from naming.norms(len(depths))


def _expected(naming: Naming, inside: Mapping[str, Tensor], depths: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield the name of every tensor that the backbone must have, with its name here."""
    norms = {theirs for theirs, _ in naming.norms(len(depths))}
    for theirs, ours in _parts(naming, depths):
        if theirs not in norms or f'{theirs}.weight' in inside:
            for parameter in ('weight', 'bias'):
                yield f'{theirs}.{parameter}', f'{ours}.{parameter}'
    # Layer scale and GRN: every block has them, if the first has.
    present = [theirs in inside for theirs, _ in naming.block_scales(0, 0)]
    for stage, depth in enumerate(depths):
        for block in range(depth):
            yield from (pair for pair, needed in zip(naming.block_scales(stage, block), present) if needed)


def _as_ours(name: str, value: Tensor) -> Tensor:
    if 'pointwise' in name and value.ndim == 4:
        return value.flatten(1)
    return value.flatten() if name.endswith(('gamma', 'beta')) else value


def _arch(backbone: Mapping[str, Tensor], depths: tuple[int, ...], norm_before_pooling: bool) -> dict[str, Any]:
    blocks = [[fill(OURS.block, stage, block) for block in range(depth)] for stage, depth in enumerate(depths)]
    hidden, width = backbone[f'{blocks[0][0]}.{OURS.pointwise[0]}.weight'].shape
    return dict(
        depths=depths,
        channels=tuple(len(backbone[f'{names[0]}.norm.weight']) for names in blocks),
        kernel_sizes=tuple(max(max(backbone[f'{name}.{OURS.mixer}.weight'].shape[2:]) for name in names)
                           for names in blocks),
        in_channels=backbone[f'{OURS.stem[0]}.weight'].shape[1],
        ffn_ratio=hidden / width,
        use_grn=f'{blocks[0][0]}.{OURS.grn[0]}' in backbone,
        layer_scale_init_value=1e-6 if f'{blocks[0][0]}.{OURS.gamma}' in backbone else 0,
        norm_before_pooling=norm_before_pooling)


def _shorten(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f', and {len(names) - 3} more' if len(names) > 3 else '')
