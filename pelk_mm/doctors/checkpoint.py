"""The former place of :mod:`pelk_mm.diagnostics.checkpoint`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..diagnostics.checkpoint import *  # noqa: F403
from ..diagnostics.checkpoint import AVERAGES, ENTRIES, named_tensors


def find_weights(content: Mapping[str, Any]) -> tuple[str | None, dict[str, Tensor]]:
    """Return the first entry that holds tensors by name, None for the content itself, and its tensors."""
    for entry in (*ENTRIES, *AVERAGES):
        tensors = named_tensors(content[entry]) if isinstance(content.get(entry), Mapping) else None
        if tensors:
            return entry, tensors
    return None, named_tensors(content)
