"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from pathlib import Path

# What a writer that was killed leaves: '<file>.partial_1', '<file>.partial_2', ...
PARTIAL = '.partial_'


def refuse_existing(*paths: str | Path, instead: str = 'name') -> None:
    """Raise before any work if a file to write is there already.

    Args:
        *paths (str | Path): The files.
        instead (str): What the user may choose another one of, for the message. Defaults to 'name'.

    Raises:
        FileExistsError: If one of them exists.
    """
    for path in paths:
        if os.path.exists(path):
            raise FileExistsError(f'{path} exists and is not overwritten: choose another {instead}')


def write_whole(content: bytes | memoryview, path: str) -> None:
    """Write a file beside ``path`` that takes its place once it is on the disk.

    A process that is killed meanwhile leaves what had the name before, and the part that it has written under a name of
    its own. After an error not even that is left.

    Args:
        content (bytes | memoryview): All of it.
        path (str): The file. If it is a link, the file that it leads to.

    Raises:
        OSError: If it cannot be written; with the name of the file, which the system does not tell in every case.
    """
    path = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = _free_name(path + PARTIAL)
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


def set_aside(path: str, suffix: str) -> str:
    """Rename a file to ``<path><suffix><number>``, a name that is free, and return that name."""
    target = _free_name(path + suffix)
    os.rename(path, target)
    return target


def _free_name(stem: str) -> str:
    return next(name for number in count(1) if not os.path.lexists(name := f'{stem}{number}'))


def _sync_folder(folder: str) -> None:
    """Bring the names in a folder to the disk; not every file system knows how."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
