"""Parameters and multiply-adds of a model and of its parts, as papers count them.

The conventions, which meet the published figures of ConvNeXt, Swin and PeLK:

- One multiply-add is one FLOP. Convolutions, linear layers and matrix products count; norms, activations, biases,
  interpolation and element-wise products do not.
- Dense form: K * K taps per convolved channel, padding included, however the peripheral convolution is computed.
- The deployed network is counted: parallel branches and their norms merged (``switch_to_deploy`` of the backbone).
- ``density`` multiplies every 2-D and 4-D weight and the multiply-adds of these: in the backbone, and for classifiers
  in the head too; the heads of segmentors and detectors are dense.
- The positional embedding is left out of the counted parameters. Its multiply-adds are those of its constant,
  C * K * K a block at every density and image size; deployment folds them away. For PeLK-T these are
  4.94 M, 0.0041 % of the backbone at 2048 x 512, where Fig. 5(b) of the paper has 0.05 %.
- Shares are of the model; the parts of the backbone have shares of the backbone beside these, as in Fig. 5(b).
- Executed operations are counted separately: zeros are multiplied like other weights, and a peripheral convolution
  has the operations of its backend, box sums included, each addition counted like a multiply-add.
- Sparse tensor cores skip the half of a linear layer's multiply-adds that 2:4 zeros make, in 16 bits if its inputs and
  outputs are multiples of 16 (cuSPARSELt, as PyTorch asks for it). No device skips zeros without such a pattern.
- Two-stage detectors: 1000 proposals through every box head, the first 100 of them through every mask head, as
  MMDetection 2.x counted for all published figures. MMDetection 3.x sends 1000 through a cascade's mask heads.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from mmengine.config import Config
from torch import nn

from pelk_mm.layers import KernelPositionEmbedding, PeripheralConv2d
from pelk_mm.ops.peripheral_conv2d.operations import Operations, resolve_counted

from .mac_counter import count_macs, part_of_convolution
from .model_building import WeightsOnMeta
from .text_tables import to_columns

# Kinds of parts, in the order of the tables.
PARTS = {
    'downsampling': 'stem and downsampling (strided convolutions)',
    'large_kernel': 'large kernels (peripheral, or depthwise over 7x7)',
    'small_kernel': 'small kernels (depthwise up to 7x7)',
    'convolution': 'other convolutions',
    'pointwise': 'pointwise (1x1 convolutions and linear layers)',
    'attention': 'attention (products of activations)',
    'embedding': 'positional embedding',
    'norm': 'norms',
    'other': 'other',
}

# Height and width at which papers give the cost of segmentors and detectors.
_SHAPES = dict(mmseg=(512, 2048), mmdet=(800, 1280))

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass
class Cost:
    """Costs of a part of a model.

    Attributes:
        params_stored (int): Parameters as a training checkpoint holds them.
        params_counted (float): Parameters of the deployed network, 2-D and 4-D weights times the density, without the
            positional embedding.
        macs (float): Multiply-adds of one image in dense form, those with weights times the density.
        executed_macs (int): Multiply-adds of one image that are executed, those with zeros too.
        executed_additions (int): Additions of box sums beside them.
    """

    params_stored: int = 0
    params_counted: float = 0
    macs: float = 0
    executed_macs: int = 0
    executed_additions: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(own + others for own, others in zip(vars(self).values(), vars(other).values())))

    @property
    def executed(self) -> int:
        """Multiply-adds and additions that are executed."""
        return self.executed_macs + self.executed_additions

    def rounded(self) -> dict[str, int]:
        """Return the attributes as integers."""
        return {name: round(value) for name, value in vars(self).items()}


@dataclass
class Complexity:
    """The costs of a model and how they were counted.

    Attributes:
        task (str): ``classification``, ``segmentation`` or ``detection``.
        shape (tuple[int, int]): Height and width of the image.
        density (float): Share of non-zero weights.
        deployed (bool): Whether branches were merged first.
        rois (tuple[int, int] | None): Proposals through the box and through the mask heads of a two-stage detector.
        backend (str): The backend of the peripheral convolution whose operations are the executed ones.
        costs (dict[str, dict[str, Cost]]): By child of the model (``backbone``, ``decode_head``, ...) and by kind of
            part, a key of ``PARTS``.
        macs_for_2_4 (int): Multiply-adds of the linear layers for which sparse tensor cores take 2:4 zeros.
    """

    task: str
    shape: tuple[int, int]
    density: float
    deployed: bool
    rois: tuple[int, int] | None
    backend: str = 'auto'
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    macs_for_2_4: int = 0

    @property
    def total(self) -> Cost:
        """The complete model."""
        return _sum(self.component(name) for name in self.costs)

    @property
    def params_embedding(self) -> int:
        """Parameters of the positional embeddings, which density and ``params_counted`` leave out."""
        return sum(parts['embedding'].params_stored for parts in self.costs.values() if 'embedding' in parts)

    def component(self, name: str) -> Cost:
        """Return the cost of one child of the model."""
        return _sum(self.costs[name].values())

    def share(self, component: str, part: str | None = None, of: str | None = None) -> float:
        """Share of the multiply-adds of the model, or of its component ``of``, in 0 ... 1."""
        return self._share('macs', component, part, of)

    def executed_share(self, component: str, part: str | None = None, of: str | None = None) -> float:
        """Share of what the model, or its component ``of``, executes, in 0 ... 1."""
        return self._share('executed', component, part, of)

    def _share(self, kind: str, component: str, part: str | None, of: str | None) -> float:
        whole = self.total if of is None else self.component(of)
        return getattr(self._cost(component, part), kind) / max(getattr(whole, kind), 1)

    def _cost(self, component: str, part: str | None) -> Cost:
        return self.component(component) if part is None else self.costs[component].get(part, Cost())

    def to_dict(self) -> dict:
        """Return plain numbers: parameters and multiply-adds, ``mparams`` and ``gmacs`` in millions and billions."""
        parts: dict[str, dict] = {}
        for name, kinds in self.costs.items():
            parts[name] = self._row(name)
            if name == 'backbone':
                parts[name]['parts'] = {kind: self._row(name, kind) for kind in kinds}
        total = self.total.rounded()
        return dict(
            {name: value for name, value in vars(self).items() if name != 'costs'},
            **total,
            params_counted_with_embedding=total['params_counted'] + self.params_embedding,
            mparams=total['params_counted'] / 1e6,
            gmacs=total['macs'] / 1e9,
            gops_executed=self.total.executed / 1e9,
            parts=parts)

    def _row(self, name: str, part: str | None = None) -> dict:
        row = dict(
            **self._cost(name, part).rounded(),
            share=self.share(name, part),
            executed_share=self.executed_share(name, part))
        if part is not None:
            row['share_of_backbone'] = self.share(name, part, of=name)
            row['executed_share_of_backbone'] = self.executed_share(name, part, of=name)
        return row

    def to_table(self) -> str:
        """Return a table to read."""
        shares = ('% model', '% backbone')
        rows: list[tuple[str, ...]] = [('', 'stored M', 'counted M', 'GMACs', *shares, 'executed G', *shares)]
        for name in self.costs:
            rows.append(self._line(name, name))
            if name == 'backbone':
                rows += [self._line(f'  {PARTS[kind]}', name, kind) for kind in self.costs[name]]
        rows.append(self._line('total'))
        height, width = self.shape
        lines = [to_columns(rows)]
        lines.append(f'{self.task}, one image of {height} x {width} (H x W); GMACs: multiply-adds in dense form')
        lines.append(f'executed: zeros too, peripheral convolutions by backend {self.backend!r}, of which '
                     f'{self.total.executed_additions / 1e9:.2f} G additions')
        lines.append(f'zeros that a GPU can skip: 2:4 in linear layers of {self.macs_for_2_4 / 1e9:.2f} GMACs, of '
                     'which half are left; others, such as those of --density, none')
        conventions = ['branches merged' if self.deployed else 'training form', f'weights x {self.density:g}']
        if self.params_embedding:
            conventions.append(f'without {self.params_embedding / 1e6:.2f} M of positional embedding')
        lines.append(f'counted: {", ".join(conventions)}')
        if self.rois:
            lines.append(f'{self.rois[0]} proposals through each box head, {self.rois[1]} through each mask head')
            lines.append('(published figures: 1000 and 100, as MMDetection 2.x counted; 3.x counts 1000 and 1000)')
        return '\n'.join(lines)

    def _line(self, title: str, name: str | None = None, part: str | None = None) -> tuple[str, ...]:
        cost = self.total if name is None else self._cost(name, part)
        cells = [title, f'{cost.params_stored / 1e6:.2f}', f'{cost.params_counted / 1e6:.2f}']
        for kind in ('macs', 'executed'):
            value = getattr(cost, kind)
            cells += [f'{value / 1e9:.2f}', f'{100 * value / max(getattr(self.total, kind), 1):.3g}']
            cells.append(f'{100 * self._share(kind, name, part, name):.3g}' if name == 'backbone' else '')
        return tuple(cells)


def count_complexity(model: nn.Module,
                     shape: Sequence[int],
                     density: float = 1.0,
                     num_rois: int = 1000,
                     num_mask_rois: int = 100,
                     deploy: bool = True,
                     backend: str = 'auto') -> Complexity:
    """Count the parameters and the multiply-adds of a model.

    Args:
        model (nn.Module): A classifier, segmentor or detector, best on the meta device, as :func:`build_model` makes
            it: the count runs on the model's device. It is not changed.
        shape (Sequence[int]): Height and width of the image.
        density (float): Share of non-zero weights, in (0, 1]. Defaults to 1.
        num_rois (int): Proposals through each box head of a two-stage detector. Defaults to 1000.
        num_mask_rois (int): Proposals through each mask head of a two-stage detector. Defaults to 100.
        deploy (bool): Count the deployed form where the backbone has ``switch_to_deploy``. Defaults to True.
        backend (str): Whose operations of the peripheral convolution count as executed: a name of
            :func:`pelk_mm.ops.available_backends`, whether it is available here or not, or ``'auto'``, the default,
            for the choice on a CPU.

    Returns:
        Complexity: Totals and parts.

    Raises:
        ValueError: If an argument is out of range.
        RuntimeError: If the model is on the meta device and cannot run there.
    """
    _check(shape, density, num_rois, num_mask_rois, backend)
    model = copy.deepcopy(model).eval()
    if not hasattr(model, 'backbone'):
        # Named as in a model.
        model = nn.Sequential(OrderedDict(backbone=model))
    rois = (num_rois, num_mask_rois) if hasattr(model, 'roi_head') else None
    result = Complexity(_task(model), (shape[0], shape[1]), density, deploy, rois, backend)
    costs: dict[str, dict[str, Cost]] = defaultdict(lambda: defaultdict(Cost))
    costs.update((name, defaultdict(Cost)) for name, _ in model.named_children())

    stored = list(_parameters(model))
    _count_embeddings(model, costs, deploy)
    switch_to_deploy = getattr(model.backbone, 'switch_to_deploy', None)
    if deploy and switch_to_deploy is not None:
        with WeightsOnMeta() if stored[0][1].is_meta else nullcontext():
            switch_to_deploy()

    counter = count_macs(model, shape, rois, backend)
    for (name, part), macs in counter.macs.items():
        component = _component(name)
        counted = macs * _share_counted(result, component, part != 'attention')
        _add(costs[component], part, counted, counter.executed.get(name, Operations(macs)))
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear) and layer.in_features % 16 == layer.out_features % 16 == 0:
            result.macs_for_2_4 += macs
    # Classify a custom module's weights by the operator it ran.
    seen = {name: part for name, part in counter.macs if part != 'attention'}
    _count_parameters(result, costs, stored, _parameters(model), seen)
    result.costs = {name: {part: parts[part] for part in PARTS if part in parts}
                    for name, parts in costs.items() if parts}
    return result


def _count_embeddings(model: nn.Module, costs: Mapping[str, dict[str, Cost]], deploy: bool) -> None:
    for name, embedding, users in _embeddings(model):
        executed = Operations() if deploy else _embedding_operations(embedding, users)
        # The constant of Eq. 3, computed plainly.
        _add(costs[_component(name)], 'embedding', users * embedding.weight.numel(), executed)


def _count_parameters(result: Complexity, costs: Mapping[str, dict[str, Cost]], stored: Iterable, counted: Iterable,
                      seen: Mapping[str, str]) -> None:
    """Add the parameters of the trained form, stored, and of the one that is run, counted."""
    for name, parameter, standard_part in stored:
        part = standard_part or seen.get(_owner(name), 'other')
        costs[_component(name)][part].params_stored += parameter.numel()
    for name, parameter, standard_part in counted:
        part, component = standard_part or seen.get(_owner(name), 'other'), _component(name)
        if part != 'embedding':
            share = _share_counted(result, component, parameter.ndim in (2, 4))
            costs[component][part].params_counted += parameter.numel() * share


def _share_counted(result: Complexity, component: str, has_weights: bool) -> float:
    is_sparse = component == 'backbone' or result.task == 'classification'
    return result.density if has_weights and is_sparse else 1


def _add(parts: dict[str, Cost], part: str, macs: float, executed: Operations) -> None:
    parts[part] += Cost(macs=macs, executed_macs=executed.multiply_adds, executed_additions=executed.additions)


def default_shape(cfg: Config) -> tuple[int, int]:
    """Return the height and width at which papers give the cost of a model.

    Args:
        cfg (Config): A config of mmseg (512 x 2048), mmdet (800 x 1280), or one whose pipeline for testing, or else for
            training, crops or resizes to a fixed size, as those of classifiers do.

    Raises:
        ValueError: If no pipeline names a size.
    """
    if cfg.get('default_scope') in _SHAPES:
        return _SHAPES[cfg.default_scope]
    for loader in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (cfg.get(loader) or {}).get('dataset', {})
        for transform in reversed(dataset.get('pipeline', [])):
            size = transform.get('crop_size') or transform.get('scale')
            if size is not None:
                width, height = (size, size) if isinstance(size, int) else size
                return height, width
    raise ValueError('shape must be given: no pipeline of the config has a transform with crop_size or scale')


def _check(shape: Sequence[int], density: float, num_rois: int, num_mask_rois: int, backend: str) -> None:
    if len(shape) != 2 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(f'shape must be two positive ints, height and width, got {shape}')
    if not 0 < density <= 1:
        raise ValueError(f'density must be in (0, 1], got {density}')
    for name, value in (('num_rois', num_rois), ('num_mask_rois', num_mask_rois)):
        if value < 0:
            raise ValueError(f'{name} must not be negative, got {value}')
    resolve_counted(backend)


def _task(model: nn.Module) -> str:
    if hasattr(model, 'decode_head'):
        return 'segmentation'
    return 'classification' if isinstance(model, nn.Sequential) or hasattr(model, 'head') else 'detection'


def _component(name: str) -> str:
    return name.partition('.')[0] or 'other'


def _owner(name: str) -> str:
    return name.rpartition('.')[0]


def _sum(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, str | None]]:
    """Yield every parameter, its name, and the kind of part that its module is, None if that is no standard layer."""
    for name, parameter in model.named_parameters():
        yield name, parameter, _part_of_module(model.get_submodule(_owner(name)))


def _part_of_module(module: nn.Module) -> str | None:
    if isinstance(module, PeripheralConv2d):
        return 'large_kernel'
    if isinstance(module, KernelPositionEmbedding):
        return 'embedding'
    if isinstance(module, nn.modules.conv._ConvNd):
        return part_of_convolution(module.kernel_size, module.stride, module.groups, module.in_channels)
    if isinstance(module, nn.Linear):
        return 'pointwise'
    return 'norm' if isinstance(module, _NORMS) else None


def _embeddings(model: nn.Module) -> Iterator[tuple[str, KernelPositionEmbedding, int]]:
    """Yield every positional embedding, its name, and how many peripheral convolutions it serves."""
    for name, module in model.named_modules():
        if isinstance(module, KernelPositionEmbedding):
            stage = model.get_submodule(_owner(name))
            yield name, module, sum(isinstance(other, PeripheralConv2d) for other in stage.modules())


def _embedding_operations(embedding: KernelPositionEmbedding, users: int) -> Operations:
    """Count the sums over the cells, first of rows, then of columns, and a product with theta for each convolution."""
    channels, size, _ = embedding.weight.shape
    cells = embedding.grid.num_cells
    return Operations(users * channels * cells * cells, channels * size * (size + cells))
