"""Compare the tensors of a checkpoint with those of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor


class Match:
    """The tensors of a checkpoint that fit a model, by name and shape.

    Attributes:
        own, found (dict[str, tuple[int, ...]]): The model's shapes and the checkpoint's, by name.
        matched (list[str]): Names with the same shape in both.
        other_shapes (list[str]): Names in both, with different shapes.
        missing (list[str]): Names of the model that the checkpoint lacks.
        unused (list[str]): Names of the checkpoint that the model lacks.
    """

    def __init__(self, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
        self.own, self.found = ({name: tuple(value.shape) for name, value in each.items()} for each in (own, found))
        self.missing = [name for name in own if name not in found]
        self.unused = [name for name in found if name not in own]
        both = [name for name in own if name in found]
        self.matched = [name for name in both if self.own[name] == self.found[name]]
        self.other_shapes = [name for name in both if self.own[name] != self.found[name]]

    @property
    def other_form(self) -> tuple[str, list[str]]:
        """The checkpoint's form where the model has the other one, ``'deployed'`` or ``'training'``, and the proof.

        Merged convolutions have a bias where those in training form have none. The proof are these biases; without any
        the form is ''.
        """
        both = {*self.matched, *self.other_shapes}
        for form, names in (('deployed', self.unused), ('training', self.missing)):
            biases = [name for name in names if name.endswith('.bias') and f'{name[:-len("bias")]}weight' in both]
            if biases:
                return form, biases
        return '', []

    def describe_shapes(self, count: int = 3) -> str:
        """List the tensors of other shapes."""
        return shorten([
            f'{name} {self.found[name]} in the checkpoint, {self.own[name]} in the model' for name in self.other_shapes
        ], count)


def shorten(names: Collection[str], count: int = 3) -> str:
    """List the first names, and how many more there are."""
    return ', '.join(list(names)[:count]) + (f', and {len(names) - count} more' if len(names) > count else '')
