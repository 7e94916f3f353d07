"""Dynamic sparsity as SLaK trains it: the choice of weights, initial densities, random masks, pruning and growth.

Functions of tensors and modules, used by :class:`~pelk_mm.engine.hooks.DynamicSparsityHook`. A mask is a bool tensor
of its weight's shape, True where the weight is live.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine import dist
from torch import Tensor, nn

from pelk_mm.module_names import clean_name

# A layer of at least this density stays dense: its mask would cost more than it saves.
DENSE_THRESHOLD = 0.99


class Pattern(NamedTuple):
    """N:M sparsity: of every ``group`` consecutive inputs of a linear layer's output, ``live`` are not zero.

    With 2:4, GPUs from Ampere on skip the zeros (``torch.sparse.to_sparse_semi_structured``).
    """

    live: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return the pattern of a text such as ``'2:4'``.

        Raises:
            ValueError: If it is no such text, or N is not below M.
        """
        found = re.fullmatch(r'([1-9]\d*):([1-9]\d*)', text) if isinstance(text, str) else None
        if found is None or int(found[1]) >= int(found[2]):
            raise ValueError(f"pattern must be 'N:M' with N below M, such as '2:4', got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f'{self.live}:{self.group}'

    def fits(self, weight: Tensor) -> bool:
        """Return whether a weight consists of groups: 2-D, as those of linear layers, with a multiple of M inputs."""
        return weight.ndim == 2 and weight.shape[1] % self.group == 0

    def holds(self, mask: Tensor) -> bool:
        """Return whether a mask or a weight has at most N entries that are not zero in each group."""
        return self.fits(mask) and bool(((mask.detach() != 0).view(-1, self.group).sum(1) <= self.live).all())

    def mask(self, scores: Tensor) -> Tensor:
        """Return the mask of the N highest scores in each group."""
        groups = scores.detach().view(-1, self.group)
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(
            1, groups.topk(self.live, sorted=False).indices, True).view(scores.shape)

    def prune_and_grow(self, weight: Tensor, mask: Tensor, rate: float,
                       generator: torch.Generator) -> tuple[Tensor, int]:
        """Kill the smallest live weight of a group and bring a dead one of it, drawn at random, to life.

        This happens in the share ``rate`` of the groups, those whose smallest live weights are the smallest. Arguments
        and results are those of :func:`prune_and_grow`.
        """
        new = mask.reshape(-1, self.group).clone()
        smallest, pruned = weight.detach().abs().view(new.shape).masked_fill(~new, math.inf).min(1)
        groups = smallest.topk(round(rate * len(new)), largest=False, sorted=False).indices
        chances = torch.rand(new.shape, generator=generator, device=new.device).masked_fill(new, -1)
        new[groups, pruned[groups]] = False
        new[groups, chances.argmax(1)[groups]] = True
        return new.view(mask.shape), len(groups)


def find_sparse_parameters(model: nn.Module,
                           include: str | Sequence[str] = (),
                           exclude: str | Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the trained weights that may be sparse: 2-D and 4-D ones, as in SLaK.

    A submodule with ``get_sparse_parameters()`` decides for its own parameters, inside a wrapper too.

    Args:
        model (nn.Module): The model, or one with parts that are wrapped, e.g. by ``torch.compile``.
        include (str | Sequence[str]): Regular expressions; a name must contain a match of one. Empty: all.
        exclude (str | Sequence[str]): Regular expressions; a name with a match of one is left out.

    Returns:
        dict[str, nn.Parameter]: By name, see :func:`clean_parameters`, in the order of ``named_parameters``.

    Raises:
        ValueError: If a pattern matches no weight, or nothing is left.
    """
    chosen = {name: p for name, p in clean_parameters(model).items() if p.ndim in (2, 4) and p.requires_grad}
    for module in model.modules():
        if hasattr(module, 'get_sparse_parameters'):
            # By identity: what a wrapper passes on has the names of the module inside of it.
            own = {id(p) for p in module.get_sparse_parameters().values()}
            others = {id(p) for p in module.parameters()} - own
            chosen = {name: p for name, p in chosen.items() if id(p) not in others}
    full_names = {id(p): name for name, p in model.named_parameters()}
    for argument, patterns in (('include', include), ('exclude', exclude)):
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        matched: set[str] = set()
        for pattern in patterns:
            names = {name for name, p in chosen.items()
                     if re.search(pattern, name) or re.search(pattern, full_names[id(p)])}
            if not names:
                raise ValueError(f'{argument} must match names of 2-D or 4-D weights, {pattern!r} matches none of '
                                 f'{len(chosen)}, for example {", ".join(list(chosen)[:3])}')
            matched |= names
        if patterns:
            chosen = {name: p for name, p in chosen.items() if (name in matched) == (argument == 'include')}
    if not chosen:
        raise ValueError(f'{type(model).__name__} has no trained 2-D or 4-D weights to make sparse')
    return chosen


def clean_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by their names without wrappers; the second of two with the same name keeps its full one."""
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        short = clean_name(name)
        parameters[name if short in parameters else short] = parameter
    return parameters


def uniform_densities(weights: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """Return the same density for every layer."""
    return dict.fromkeys(weights, density)


def erk_densities(weights: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """Return Erdos-Renyi-Kernel densities: proportional to the sum of a layer's sides over their product, at most 1.

    ``density`` is that of all weights together.
    """
    dense: set[str] = set()
    total = sum(weight.numel() for weight in weights.values())
    while len(dense) < len(weights):
        rest = {name: weight for name, weight in weights.items() if name not in dense}
        budget = density * total - sum(weights[name].numel() for name in dense)
        scale = budget / sum(sum(weight.shape) for weight in rest.values())
        densities = {name: scale * sum(weight.shape) / weight.numel() for name, weight in rest.items()}
        # Capping a layer leaves more for the others, so every density above 1 stays above it.
        over = {name for name, value in densities.items() if value > 1}
        if not over:
            return {name: densities.get(name, 1.0) for name in weights}
        dense |= over
    return dict.fromkeys(weights, 1.0)


def saliencies(loss: Tensor, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return SNIP's saliency \\|w * dL/dw\\| of every weight; zero if the loss does not depend on it.

    ``.grad`` is unchanged. In distributed training L is the mean of the ranks' losses.
    """
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    found = {}
    for (name, weight), gradient in zip(weights.items(), gradients):
        gradient = torch.zeros_like(weight) if gradient is None else gradient.contiguous()
        dist.all_reduce(gradient, 'mean')
        found[name] = (weight * gradient).abs().detach()
    return found


def snip_densities(saliency: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """Return each layer's share of weights among the most salient ``density`` of all, by name as in :func:`saliencies`.

    Raises:
        ValueError: If a saliency is not finite, or fewer than the weights to keep are above zero.
    """
    scores = torch.cat([values.flatten() for values in saliency.values()])
    keep = round(density * scores.numel())
    if not torch.isfinite(scores).all():
        raise ValueError('SNIP needs finite saliencies, but the loss or its gradient is not finite')
    if int(scores.count_nonzero()) < keep:
        raise ValueError(f'SNIP is to keep {keep} weights, but only {int(scores.count_nonzero())} have a gradient in '
                         "its batch; use init='erk' or 'uniform', or exclude the layers that the loss ignores")
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(keep, sorted=False).indices] = True
    counts = [int(part.sum()) for part in chosen.split([values.numel() for values in saliency.values()])]
    return {name: count / values.numel() for (name, values), count in zip(saliency.items(), counts)}


def draw_masks(weights: Mapping[str, Tensor], densities: Mapping[str, float],
               generator: torch.Generator) -> dict[str, Tensor]:
    """Draw masks with exactly ``round(density * size)`` live weights, at least one; none for layers that stay dense.

    Layers of at least :data:`DENSE_THRESHOLD` get none.
    """
    masks = {}
    for name, weight in weights.items():
        if densities[name] < DENSE_THRESHOLD:
            live = max(1, round(densities[name] * weight.numel()))
            masks[name] = _random_mask(weight.numel(), live, generator).view(weight.shape)
    return masks


def masks_from_zeros(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return masks of the weights that are not zero, for the layers that have a zero.

    A layer of only zeros has no pattern to keep: it was initialised so, as layers at the end of a branch often are.
    """
    masks = {name: weight.detach() != 0 for name, weight in weights.items()}
    return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}


def patterned_densities(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the densities of the layers that are already sparse, below :data:`DENSE_THRESHOLD`.

    A single zero is not a pattern: random initial values are exactly zero once in about ten million.
    """
    densities = {name: int(mask.sum()) / mask.numel() for name, mask in masks_from_zeros(weights).items()}
    return {name: density for name, density in densities.items() if density < DENSE_THRESHOLD}


def cosine_prune_rate(step: int, total_steps: int, start: float, final: float) -> float:
    """Return ``start`` at step 0, ``final`` from ``total_steps`` on, half a cosine between."""
    progress = min(step / total_steps, 1.0)
    return final + (start - final) * (1 + math.cos(math.pi * progress)) / 2


def prune_and_grow(weight: Tensor, mask: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, int]:
    """Kill the live weights of smallest magnitude and bring as many dead ones, drawn at random, to life.

    A weight just pruned may be drawn again and then keeps its value, as in SLaK. ``rate`` is the share of the live
    weights to prune, in [0, 1]; the generator is on the weight's device.

    Returns:
        tuple[Tensor, int]: The new mask, and how many weights were pruned and grown, ``round(rate * live)``.
    """
    count = round(rate * int(mask.sum()))
    new = mask.flatten().clone()
    magnitudes = weight.detach().abs().flatten().masked_fill(~new, math.inf)
    new[magnitudes.topk(count, largest=False, sorted=False).indices] = False
    dead = (~new).nonzero().squeeze(1)
    new[dead[_random_mask(len(dead), count, generator)]] = True
    return new.view(mask.shape), count


@torch.no_grad()
def apply_masks(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set dead weights to exactly zero, in place."""
    for name, mask in masks.items():
        tensors[name].mul_(mask)


def group_densities(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the density of each group of layers: one for every stage and downsampling layer, and each other module."""
    live: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for name, weight in weights.items():
        numbered = re.match(r'.*?\.\d+(?=\.)', name)
        group = numbered.group() if numbered else name.rpartition('.')[0]
        live[group] += int(masks[name].sum()) if name in masks else weight.numel()
        size[group] += weight.numel()
    return {group: live[group] / size[group] for group in size}


def pack_mask(mask: Tensor) -> Tensor:
    """Pack eight positions to a byte: bool of any shape -> uint8 on the CPU, (ceil(size / 8),)."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the mask that :func:`pack_mask` packed: bool of ``shape``, on the CPU."""
    bits = np.unpackbits(packed.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(bits.astype(bool)).view(tuple(shape))


def unpack_masks(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return masks by name from the ``dynamic_sparsity`` of a checkpoint, on the CPU."""
    return {clean_name(name): unpack_mask(mask['bits'], mask['shape']) for name, mask in saved['masks'].items()}


def _random_mask(size: int, count: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool, device=generator.device)
    mask[torch.randperm(size, generator=generator, device=generator.device)[:count]] = True
    return mask
