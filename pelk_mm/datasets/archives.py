"""Extraction that can be interrupted and taken up again, and never overwrites a file.

All functions return the number of files written, make missing folders, and raise a ValueError if an archive is damaged
or holds a path that leaves the target, a FileExistsError if a file is there with another size than in the archive, and
an OSError if the disk has not enough room, before anything is written.
"""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rich.progress import track

# Path below the target, size in bytes, and what opens the file.
Member = tuple[str, int, Callable[[], Any]]


def extract_zip(archive: Path, target: Path) -> int:
    """Extract the files of a zip archive which are not there yet."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [(info.filename, info.file_size, partial(opened.open, info)) for info in opened.infolist()
                       if not info.is_dir()]
            return _extract(members, target, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f'{archive} is damaged or no zip archive ({error}): download it again.') from error


def extract_tar(archive: Path, target: Path, rename: Callable[[str], str] = str) -> int:
    """Extract the files of an uncompressed tar archive which are not there yet.

    ``rename`` turns the name in the archive into the path below ``target``.
    """
    with _open_tar(archive) as opened:
        members = [(rename(str(PurePosixPath(member.name))), member.size, partial(opened.extractfile, member))
                   for member in _files_of(opened, archive)]
        return _extract(members, target, archive)


def extract_tar_of_tars(archive: Path, target: Path) -> int:
    """Extract a tar archive of tar archives, each into the folder called as it is without ``.tar``."""
    written = 0
    with _open_tar(archive) as outer:
        members = _files_of(outer, archive)
        strangers = [member.name for member in members if not member.name.endswith('.tar')]
        if strangers:
            raise ValueError(f'{archive} should hold nothing but .tar archives, but holds {strangers[0]}.')
        folders = [_locate(target, member.name[:-len('.tar')], archive) for member in members]
        check_disk_space(target, sum(member.size for member, folder in zip(members, folders) if not folder.exists()))
        for member, folder in track(list(zip(members, folders)), description=archive.name):
            with _open_tar(archive, outer.extractfile(member)) as inner:
                files = [(file.name, file.size, partial(inner.extractfile, file)) for file in _files_of(inner, archive)]
                written += _extract(files, folder, archive, nested=True)
    return written


def _extract(members: Iterable[Member], target: Path, archive: Path, nested: bool = False) -> int:
    wanted = [(_locate(target, name, archive), size, read) for name, size, read in members]
    missing = [(path, size, read) for path, size, read in wanted if not is_extracted(path, size)]
    check_disk_space(target, sum(size for _, size, _ in missing))
    for path, size, read in track(missing, description=archive.name, disable=nested):
        _write(read(), path, size, archive)
    return len(missing)


def is_extracted(path: Path, size: int) -> bool:
    """Return whether a file is there already.

    Raises:
        FileExistsError: If it has another size, in bytes.
    """
    if not path.exists():
        return False
    if path.stat().st_size != size:
        raise FileExistsError(f'{path} exists with {path.stat().st_size} bytes, the archive has it with {size}. '
                              'It is left as it is: move it away and start again.')
    return True


def check_disk_space(target: Path, needed: int) -> None:
    """Raise an OSError when the disk of ``target`` has fewer than ``needed`` bytes left."""
    existing = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f'{target} needs {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free there.')


def _open_tar(archive: Path, stream: IO[bytes] | None = None) -> tarfile.TarFile:
    """Open an uncompressed tar archive, or one that lies inside it as ``stream``."""
    try:
        return tarfile.open(archive if stream is None else None, mode='r:', fileobj=stream)
    except tarfile.ReadError as error:
        raise ValueError(f'{archive} is damaged or no tar archive ({error}): download it again.') from error


def _files_of(opened: tarfile.TarFile, archive: Path) -> list[tarfile.TarInfo]:
    """List the files of an opened tar archive; links and devices are refused."""
    try:
        members = [member for member in opened.getmembers() if not member.isdir()]
    except tarfile.ReadError as error:
        raise ValueError(f'{archive} is damaged ({error}): download it again.') from error
    # Python reads an archive cut off between two files as a shorter one; a complete one ends in a block of zeros.
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f'{archive} is damaged (its end is missing): download it again.')
    for member in members:
        if not member.isfile():
            raise ValueError(f'{archive} holds {member.name}, which is no plain file.')
    return members


def _locate(target: Path, name: str, archive: Path) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith('/') or '..' in parts:
        raise ValueError(f'{archive} holds {name!r}, a path that leaves the folder to extract to.')
    return target.joinpath(*parts)


def _write(source: IO[bytes], path: Path, size: int, archive: Path) -> None:
    """Write one file under a temporary name, and rename it when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(path.name + '.part')
    try:
        with source, open(partial_path, 'wb') as file:
            shutil.copyfileobj(source, file, 2**20)
        found = partial_path.stat().st_size
        if found != size:
            raise ValueError(f'{archive} is damaged: {path.name} ends after {found} of {size} bytes. '
                             'Download it again.')
        partial_path.rename(path)
    finally:
        partial_path.unlink(missing_ok=True)
