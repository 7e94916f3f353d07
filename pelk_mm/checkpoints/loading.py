"""Load checkpoints safely: tensors, plain values and log history only. Find damaged files."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer, print_log

# Types of the numbers that checkpoints may hold.
NUMPY_TYPES = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'float16', 'float32',
               'float64')

# What PyTorch says when it refuses to call, make or open something.
_REFUSED = {
    'call': r'GLOBAL (\S+)(?: was not an allowed| whose module)',
    'make a': r'Can only (?:build|create) .* got (.+)',
    'open': r'weights_only=True\W+with (TorchScript archives|files saved in the\s+legacy .tar format)',
}

# Checkpoints, files or URLs, that may run code: see trust_checkpoint().
_trusted: set[str] = set()


class UnsafeCheckpoint(UnpicklingError, ValueError):
    """A checkpoint that holds code, of which nothing was run; loading it ``needs`` to 'call posix.system', say."""

    def __init__(self, name: str, needs: str) -> None:
        super().__init__(f'{name!r} holds more than tensors and plain values and is not loaded: that would {needs}, '
                         'and could do anything. Nothing of it was run. Let its author save only its state_dict. Only '
                         'if you know who made the file and trust them, run its code by --trust-checkpoint and its '
                         'name, in a script of your own by pelk_mm.compat.trust_checkpoint')
        self.name, self.needs = name, needs

    def __reduce__(self) -> tuple:
        return UnsafeCheckpoint, (self.name, self.needs)


class DamagedCheckpoint(ValueError):
    """A corrupt or truncated checkpoint."""


def trust_checkpoint(name: str | Path) -> None:
    """Let this process run the code that a file or URL may hold. A warning names it whenever that happens.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if '://' not in str(name) and not os.path.isfile(name):
        raise FileNotFoundError(f'--trust-checkpoint: no such file, {name}')
    _trusted.add(_identity(str(name)))


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint FILE``, without which no checkpoint can run code, to a tool that loads checkpoints."""
    parser.add_argument(
        '--trust-checkpoint',
        action=_TrustCheckpoint,
        metavar='FILE',
        help='RUN the code in this checkpoint, if it needs more than tensors and plain values. Only for a file whose '
        'author you know and trust')


class _TrustCheckpoint(argparse.Action):

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            trust_checkpoint(values)
        except FileNotFoundError as error:
            parser.error(str(error))


def safe_load(source: str | Path | BinaryIO, map_location: Any = 'cpu') -> Any:
    """Load a checkpoint of any origin: tensors, plain values and MMEngine's log history, or nothing.

    The process-wide allow-list is ignored, except for files passed to :func:`trust_checkpoint`.

    Args:
        source (str | Path | BinaryIO): Path, URL or open file.
        map_location (str | torch.device | None): Where tensors are loaded to, as for ``torch.load``. 'meta' reads no
            data of tensors. Defaults to 'cpu'.

    Returns:
        Any: The content, mostly a dict.

    Raises:
        OSError: If it cannot be read; a FileNotFoundError if there is no such file.
        DamagedCheckpoint: If it is no checkpoint, or a part of one. A ValueError.
        UnsafeCheckpoint: If it holds anything else, which is not run. A ValueError.
    """
    if not isinstance(source, (str, Path)):
        return load_checked('a checkpoint', partial(torch.load, source, map_location=map_location))
    with get_local_path(str(source)) as path:
        return load_checked(str(source), partial(torch.load, path, map_location=map_location))


def load_checked(name: str, load: Callable[..., Any]) -> Any:
    """Load as :func:`safe_load`, by ``load(weights_only=True)``; trusted files with code by ``weights_only=False``."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(checkpoint_globals())
    try:
        return load(weights_only=True)
    except OSError:
        raise
    # A file that is damaged, or made to do harm, raises nearly anything.
    except Exception as error:
        needs = _needs(str(error))
        if needs is None:
            reason = str(error).rpartition('WeightsUnpickler error: ')[2].strip() or type(error).__name__
            raise DamagedCheckpoint(f'{name!r} is no checkpoint, or a part of one: {reason.splitlines()[0]}. Copy or '
                                    'download it again, or take the one before') from error
        if _identity(name) not in _trusted:
            raise UnsafeCheckpoint(name, needs) from None
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    print_log(
        f'--trust-checkpoint: {name!r} is loaded with all that it holds, and would {needs}. ANY CODE IN IT RUNS NOW, '
        'with your rights.',
        logger='current',
        level=logging.WARNING)
    return load(weights_only=False)


def _needs(message: str) -> str | None:
    """Return the action of a file that ``weights_only`` refuses, from PyTorch's message; None for other errors."""
    for verb, pattern in _REFUSED.items():
        if found := re.search(pattern, message):
            return f'{verb} {" ".join(found.group(1).split())}'
    return None


def _identity(name: str) -> str:
    return name if '://' in name else os.path.realpath(name)


def checkpoint_globals() -> list:
    """Return the types that checkpoints hold beside tensors and plain values, as ``torch.serialization`` takes them.

    These are MMEngine's log history, NumPy's arrays and numbers, and other code bases' arguments of the command line.
    """
    scalar, reconstruct = (value.__reduce__()[0] for value in (np.float64(0), np.zeros(0)))
    allowed: list = [
        argparse.Namespace, HistoryBuffer, np.ndarray, np.dtype, (_history_statistic, 'builtins.getattr')
    ]
    # NumPy 2 renamed numpy.core; checkpoints written with either must load.
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed += [(scalar, f'{core}.scalar'), (reconstruct, f'{core}._reconstruct')]
    allowed += [type(np.dtype(name)) for name in NUMPY_TYPES]
    return allowed


def _history_statistic(owner: type, name: str):
    """Stand in for ``getattr`` in a checkpoint, where it may only name the statistics of a ``HistoryBuffer``.

    Raises:
        UnpicklingError: If anything else is asked for.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError(
            f'GLOBAL getattr was not an allowed global: it may only refer to the statistics of HistoryBuffer, got '
            f'{name!r} of {owner!r}')
    return getattr(owner, name)


def checkpoint_error(path: str | Path, checksums: bool = True) -> str | None:
    """Return the damage of a file of ``torch.save``; None if it is intact.

    Args:
        path (str | Path): The file.
        checksums (bool): Read all of it and compare checksums, which ``torch.load`` does not; otherwise only check
            that its end is there. Defaults to True.

    Raises:
        OSError: If it cannot be read.
    """
    if not os.path.getsize(path):
        return 'it is empty'
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip() if checksums else None
    except zipfile.BadZipFile:
        return 'its end is missing, or it is no file of torch.save'
    # What Python's zipfile raises for a bit that is wrong in a size, a name or a flag.
    except (EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        return f'a header in it is wrong ({error or type(error).__name__})'
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 'a header in it is wrong (it points outside the file)'
    return wrong and f'{wrong} in it has a wrong checksum'
