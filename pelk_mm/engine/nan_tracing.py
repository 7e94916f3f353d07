"""Find where NaN and infinity begin: one pass through a model that watches every tensor between its modules."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pelk_mm.module_names import clean_name


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norms of tensors, (len(tensors), ), each finite where its tensor is; nothing waits for a GPU."""
    tensors = [tensor.detach() for tensor in tensors]
    if tensors[0].device.type == 'cpu':
        # There the Euclidean norm takes a seventh of the time, and reading waits for nothing.
        norms = torch.stack(torch._foreach_norm(tensors, 2))
        if torch.isfinite(norms).all():
            return norms
    # Where squares overflow, the largest magnitude decides.
    return torch.stack(torch._foreach_norm(tensors, math.inf))


def non_finite_names(tensors: Mapping[str, Tensor | None]) -> list[str]:
    """Return the names of the floating-point tensors that hold NaN or infinity; None counts as finite."""
    return [clean_name(name) for name, tensor in tensors.items() if tensor is not None and not _finite(tensor)]


class Trace:
    """Watch the outputs of a model's modules, and their gradients, until one is not finite.

    Of nested modules the innermost is named. The inputs of a module are watched as well, as not everything between
    modules is a module.

    Attributes:
        forward (str | None): Where the forward pass first left the finite numbers.
        backward (str | None): Where the backward pass did.
        samples (list[int]): Indices of the images whose values in that first tensor are not finite, where its first
            dimension is the batch.
    """

    def __init__(self, model: nn.Module, batch_size: int | None = None) -> None:
        self.forward: str | None = None
        self.backward: str | None = None
        self.samples: list[int] = []
        self._batch_size = batch_size
        self._names = {module: clean_name(name) for name, module in model.named_modules()}
        # By id of the tensor: the tensor, kept alive, and the modules that returned it and that took it.
        self._tensors: dict[int, tuple[Tensor, dict[str, str]]] = {}

    @contextmanager
    def watching_forward(self) -> Iterator[None]:
        """Watch the modules; the gradients too, if a backward pass follows."""
        with ExitStack() as stack:
            for module in self._names:
                stack.enter_context(module.register_forward_pre_hook(self._before, with_kwargs=True))
                stack.enter_context(module.register_forward_hook(self._after))
            yield

    def _before(self, module: nn.Module, args, kwargs) -> None:
        for tensor in nested_tensors((args, kwargs)):
            self._look(tensor, f'what {self._describe(module)} receives')
            # The innermost module comes last.
            self._modules_of(tensor)['taken'] = self._describe(module)

    def _after(self, module: nn.Module, args, output) -> None:
        # What the model itself returns are the losses, and figures beside them.
        for tensor in nested_tensors(output) if self._names[module] else ():
            self._look(tensor, f'what {self._describe(module)} returns')
            self._modules_of(tensor).setdefault('returned', self._describe(module))

    def _look(self, tensor: Tensor, where: str) -> None:
        if self.forward is None and not _finite(tensor):
            self.forward = where
            if tensor.ndim and tensor.shape[0] == self._batch_size:
                self.samples = (~torch.isfinite(tensor.detach())).flatten(1).any(1).nonzero().flatten().tolist()

    def _modules_of(self, tensor: Tensor) -> dict[str, str]:
        """Return the modules that took and returned a tensor, and watch its gradient from the first time on."""
        if not tensor.requires_grad:
            return {}
        if id(tensor) not in self._tensors:
            modules: dict[str, str] = {}
            self._tensors[id(tensor)] = tensor, modules
            tensor.register_hook(lambda gradient: self._look_back(gradient, modules))
        return self._tensors[id(tensor)][1]

    def _look_back(self, gradient: Tensor, modules: dict[str, str]) -> None:
        if self.backward is None and not _finite(gradient):
            if 'taken' in modules:
                to = f' to {modules["returned"]}' if 'returned' in modules else ''
                self.backward = f'what {modules["taken"]} passes back{to}'
            else:
                self.backward = f'what is passed back to {modules["returned"]}'

    def _describe(self, module: nn.Module) -> str:
        name = self._names[module]
        return f'{name} ({type(module).__name__})' if name else f'the model ({type(module).__name__})'


def trace(model: nn.Module,
          compute_losses: Callable[[], Mapping[str, Tensor]],
          sum_losses: Callable[[Mapping], Tensor],
          batch_size: int | None = None) -> tuple[Trace, list[str]]:
    """Run one forward pass and, if it stays finite, its backward pass, and watch both.

    Returns:
        tuple[Trace, list[str]]: The trace, and the names of the losses that are not finite.
    """
    seen = Trace(model, batch_size)
    with seen.watching_forward(), _uncompiled():
        losses = compute_losses()
    names = [name for name, values in losses.items()
             if 'loss' in name and not all(map(_finite, nested_tensors(values)))]
    if seen.forward is None and not names:
        sum_losses(losses).backward()
    return seen, names


def image_paths(batch) -> list[str]:
    """Return the paths of the images of a batch, as its data samples give them."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return [path for part in batch for path in image_paths(part)]
    path = getattr(batch, 'img_path', None)
    return [path] if isinstance(path, str) else []


def non_finite_samples(batch) -> list[int]:
    """Return the indices of the images, the ``inputs`` of a batch as it was loaded, that hold NaN or infinity."""
    inputs = batch.get('inputs', ()) if isinstance(batch, Mapping) else ()
    if not isinstance(inputs, (Tensor, list, tuple)):
        return []
    return [index for index, image in enumerate(inputs) if isinstance(image, Tensor) and not _finite(image)]


def _uncompiled() -> AbstractContextManager:
    """Run what ``torch.compile`` compiled as it was written: compiled modules call no hooks of those inside of them."""
    return torch.compiler.set_stance('force_eager') if 'torch._dynamo' in sys.modules else nullcontext()


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach()).all())


def nested_tensors(values: Any) -> Iterator[Tensor]:
    """Yield every tensor of nested mappings, lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from nested_tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from nested_tensors(value)
