"""Read files of weights with nothing but PyTorch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Entries of checkpoints that hold the weights, in the order in which they are tried.
ENTRIES = ('state_dict', 'model')

# Entries that hold averaged weights beside raw ones, in checkpoints of SLaK's and ConvNeXt's code and of timm.
AVERAGED_ENTRIES = ('model_ema', 'state_dict_ema')

_SAFETENSORS_TYPES = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16, I64=torch.int64,
                          I32=torch.int32, U8=torch.uint8, BOOL=torch.bool)


def read_weights(path: str | Path) -> Any:
    """Read a file of ``torch.save``, of tensors and plain values only, or a ``.safetensors`` file, to the CPU.

    Args:
        path (str | Path): The file. Nothing in it is run.

    Raises:
        OSError: If it cannot be read.
        ValueError: If a ``.safetensors`` file is damaged, or has a type that ConvNeXt has not.
        pickle.UnpicklingError: If a file of ``torch.save`` holds anything else;
            :func:`pelk_mm.checkpoints.loading.safe_load` reads the checkpoints of more trainings, just as safely.
    """
    if Path(path).suffix == '.safetensors':
        return _read_safetensors(Path(path))
    # The arguments of the command line, which the authors' code saves.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True)


def find_state_dict(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, of raw weights if there are any, else its own.

    Args:
        content (Any): What a checkpoint holds, or a state dict.

    Raises:
        ValueError: If there are no tensors.
    """
    entries = ENTRIES + AVERAGED_ENTRIES
    if isinstance(content, Mapping):
        weights = next((content[entry] for entry in entries if isinstance(content.get(entry), Mapping)), content)
        tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError(f'expected a state dict, or a checkpoint that has one as {", ".join(entries)}, got '
                     + (f'a mapping of {sorted(map(str, content))[:5]}' if isinstance(content, Mapping) else
                        type(content).__name__))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the format of https://github.com/huggingface/safetensors: a header in JSON, then the numbers."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], 'little')
    try:
        header = json.loads(content[8:start])
        header.pop('__metadata__', None)
        tensors = {}
        for name, entry in header.items():
            dtype, (first, last) = _SAFETENSORS_TYPES[entry['dtype']], entry['data_offsets']
            count = prod(entry['shape'])
            if last - first != count * dtype.itemsize or start + last > len(content):
                raise ValueError(f'{name} lies outside the file')
            tensors[name] = torch.frombuffer(content, dtype=dtype, count=count, offset=start + first).clone().view(
                entry['shape'])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is no complete .safetensors file of plain numbers: {error}') from error
    return tensors
