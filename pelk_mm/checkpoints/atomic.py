"""Write files that are complete or absent."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch

# The suffix of incomplete files, which a killed writer leaves: '<file>.partial_1', '<file>.partial_2', ...
PARTIAL = '.partial_'


def refuse_existing(*paths: str | Path, instead: str = 'name') -> None:
    """Raise a FileExistsError before any work if a file to write exists; the user is to choose another ``instead``."""
    for path in paths:
        if os.path.exists(path):
            raise FileExistsError(f'{path} exists and is not overwritten: choose another {instead}')


def atomic_write(content: bytes | memoryview, path: str | Path) -> None:
    """Write a file beside ``path``, sync it to the disk, then rename it to ``path``. Missing folders are made.

    If the process is killed, the previous file stays, and the incomplete one keeps a name of its own. After an error
    the incomplete one is removed. If ``path`` is a link, its target is replaced.

    Raises:
        OSError: If it cannot be written; always with the name of the file, which some system calls leave out.
    """
    path = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = free_name(path + PARTIAL)
        with open(part, 'xb') as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, path)
            except BaseException:
                os.unlink(part)
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    _sync_folder(os.path.dirname(path))


def atomic_save(content: Mapping[str, Any], path: str | Path) -> None:
    """Call ``torch.save`` and write the result by :func:`atomic_write`."""
    atomic_write(serialize(content), path)


def serialize(content: Mapping[str, Any]) -> memoryview:
    """Return the bytes that ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def set_aside(path: str, suffix: str) -> str:
    """Rename a file to ``<path><suffix><number>``, the first free name, and return that name."""
    target = free_name(path + suffix)
    os.rename(path, target)
    return target


def free_name(stem: str) -> str:
    """Return ``<stem><number>``, the first that is not there."""
    return next(name for number in count(1) if not os.path.lexists(name := f'{stem}{number}'))


def _sync_folder(folder: str) -> None:
    """Sync the names in a folder to the disk; not every file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
