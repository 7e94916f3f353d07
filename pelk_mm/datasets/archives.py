"""Extraction that can be interrupted and continued, and never overwrites a file."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, cast

from rich.progress import track


def extract_zip(archive: Path, target: Path) -> int:
    """Extract the files of a zip archive which are not there yet.

    Args:
        archive (Path): The archive.
        target (Path): Folder to extract to, made when missing.

    Returns:
        int: Number of files written.

    Raises:
        ValueError: If the archive is damaged or holds a path that leaves ``target``.
        FileExistsError: If a file is there with another size than in the archive.
        OSError: If the disk has not enough room, before anything is written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            wanted = [(info, _locate(target, info.filename, archive)) for info in members]
            missing = [(info, path) for info, path in wanted if not is_extracted(path, info.file_size)]
            check_disk_space(target, sum(info.file_size for info, _ in missing))
            for info, path in track(missing, description=archive.name):
                with opened.open(info) as source:
                    _write(source, path, info.file_size, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f'{archive} is damaged or no zip archive ({error}): download it again.') from error
    return len(missing)


def extract_tar(archive: Path, target: Path, rename: Callable[[str], str] = str) -> int:
    """Extract the files of an uncompressed tar archive which are not there yet.

    Args:
        archive (Path): The archive.
        target (Path): Folder to extract to, made when missing.
        rename (Callable): From the name in the archive to the path below ``target``. Defaults to the name itself.

    Returns:
        int: Number of files written.

    Raises:
        ValueError: If the archive is damaged or holds a path that leaves ``target``.
        FileExistsError: If a file is there with another size than in the archive.
        OSError: If the disk has not enough room, before anything is written.
    """
    with _open_tar(archive) as opened:
        members = _files_of(opened, archive)
        wanted = [(member, _locate(target, rename(str(PurePosixPath(member.name))), archive)) for member in members]
        missing = [(member, path) for member, path in wanted if not is_extracted(path, member.size)]
        check_disk_space(target, sum(member.size for member, _ in missing))
        for member, path in track(missing, description=archive.name):
            _write(cast(IO[bytes], opened.extractfile(member)), path, member.size, archive)
    return len(missing)


def extract_tar_of_tars(archive: Path, target: Path) -> int:
    """Extract a tar archive of tar archives, each into a folder with its name without ``.tar``.

    Args:
        archive (Path): The outer archive.
        target (Path): Folder to make the folders in.

    Returns:
        int: Number of files written.

    Raises:
        ValueError: If the archive is damaged, holds something else than tar archives, or a path that leaves ``target``.
        FileExistsError: If a file is there with another size than in the archive.
        OSError: If the disk has not enough room for the folders that are still to be made, before anything is written.
    """
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
                for file in _files_of(inner, archive):
                    path = _locate(folder, file.name, archive)
                    if not is_extracted(path, file.size):
                        _write(cast(IO[bytes], inner.extractfile(file)), path, file.size, archive)
                        written += 1
    return written


def is_extracted(path: Path, size: int) -> bool:
    """Return whether a file already exists.

    Args:
        path (Path): The file.
        size (int): The size it should have, in bytes.

    Raises:
        FileExistsError: If it has another size.
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
    """Path of an archive member below ``target``."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith('/') or '..' in parts:
        raise ValueError(f'{archive} holds {name!r}, a path that leaves the folder to extract to.')
    return target.joinpath(*parts)


def _write(source: IO[bytes], path: Path, size: int, archive: Path) -> None:
    """Write one file under a temporary name, and rename it when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.part')
    try:
        with source, open(partial, 'wb') as file:
            shutil.copyfileobj(source, file, 2**20)
        found = partial.stat().st_size
        if found != size:
            raise ValueError(f'{archive} is damaged: {path.name} ends after {found} of {size} bytes. '
                             'Download it again.')
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
