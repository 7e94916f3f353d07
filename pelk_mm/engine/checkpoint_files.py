"""Which checkpoint stopped training goes on from: the last whole one."""

from __future__ import annotations

import errno
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from mmengine.logging import print_log

from .. import compat
from ..whole_files import PARTIAL

# What training needs to go on. Best checkpoints and published ones lack some of it.
TRAINING_STATE = {'meta', 'state_dict', 'message_hub', 'optimizer'}


def find_damage(path: str | Path, checksums: bool = True) -> str | None:
    """Why a file is not, or not all of, what ``torch.save`` wrote.

    Args:
        path (str | Path): The file.
        checksums (bool): Read all of it and compare checksums, which ``torch.load`` does not; otherwise only look
            whether it has its end. Defaults to True.

    Returns:
        str | None: The reason; None for a whole file.
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


def check_whole(path: str) -> None:
    """Refuse to resume from a damaged file.

    Raises:
        ValueError: If it is damaged; with the whole ones beside it.
    """
    damage = find_damage(path)
    if damage is None:
        return
    whole = [str(file) for file in _newest_first(Path(path).parent) if find_damage(file, checksums=False) is None]
    others = f'Whole ones beside it, the newest first: {", ".join(whole[:3])}. ' if whole else ''
    raise ValueError(f'--resume: {path} is damaged, {damage}. {others}Name another one, or none: --resume alone takes '
                     'the last whole checkpoint of the work directory')


def find_last_whole_checkpoint(work_dir: str | Path) -> str | None:
    """The checkpoint that ``--resume`` goes on from.

    It is the one that ``last_checkpoint`` names, or one that was saved later. If that is damaged, it is the whole one
    that was saved last. The log names every damaged file; they are left as they are.

    Args:
        work_dir (str | Path): Of the training.

    Returns:
        str | None: The checkpoint. None if there is none that is whole.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    named = _read_pointer(pointer)
    if named and ('://' in named or os.path.isdir(named)):
        # Not on this machine, or saved in parts by DeepSpeed: as MMEngine finds it.
        return named
    files = _newest_first(Path(work_dir))
    first = next((file for file in files if named and file.samefile(named)), None)
    if named and first is None:
        first = Path(named)
        files = [first, *(file for file in _newest_first(first.parent) if not file.samefile(first)), *files]
    for folder in dict.fromkeys(file.parent for file in [pointer, *files]):
        for part in sorted(folder.glob(f'*{PARTIAL}*')):
            _warn(f'{part} is what a process has left that was ended while it wrote: it is not used, and you may '
                  'delete it')
    whole = []
    for file in files:
        damage = find_damage(file, checksums=False)
        if damage is None:
            whole.append(file)
        else:
            _warn_of_damage(file, damage)
    for file in _in_order(whole, first, pointer):
        damage = find_damage(file)
        if damage is None:
            print_log(f'{file} is the last whole checkpoint of {work_dir}', logger='current')
            return str(file)
        _warn_of_damage(file, damage)
    _warn(f'{work_dir} holds no whole checkpoint to go on from: training starts at its beginning')
    return None


def _read_pointer(pointer: Path) -> str:
    """The checkpoint that ``last_checkpoint`` names, in the work directory if that was moved; '' if there is none."""
    text = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if not text or '://' in text or os.path.exists(text):
        return text
    here = pointer.with_name(Path(text).name)
    if here.exists():
        return str(here)
    _warn(f'{pointer} names {text}, which does not exist')
    return ''


def _newest_first(folder: Path) -> list[Path]:
    files = [file for file in folder.glob('*.pth') if file.is_file()]
    return sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True)


def _in_order(files: list[Path], named: Path | None, pointer: Path) -> Iterator[Path]:
    """The files that training can go on from, the best first.

    What ``last_checkpoint`` names counts: whoever went back to an earlier checkpoint has older files of later
    iterations beside it. Only a file that is younger than the pointer is of a process that was ended before it could
    move it.
    """
    if named not in files:
        named = None
    states: dict[Path, tuple[str, int] | None] = {}

    def by_progress(candidates: list[Path]) -> list[tuple[tuple[str, int], Path]]:
        states.update((file, _progress(file)) for file in candidates if file not in states)
        return sorted(((state, file) for file in candidates if (state := states[file])), reverse=True)

    tried: list[Path] = []
    if named is not None:
        since = pointer.stat().st_mtime_ns
        younger = by_progress([file for file in files if file.stat().st_mtime_ns > since and file != named])
        reached = _progress(named) if younger else None
        tried = [*(file for state, file in younger if reached is None or state > reached), named]
        yield from tried
    yield from (file for _, file in by_progress([file for file in files if file not in tried]))


def _progress(file: Path) -> tuple[str, int] | None:
    """When a checkpoint was saved and after which iteration; None if training cannot go on from it."""
    try:
        # No data of tensors is read.
        content = compat.load_safely(file, 'meta')
    except (OSError, ValueError) as error:
        _warn(f'{file} is not used: {error}')
        return None
    if not isinstance(content, dict) or TRAINING_STATE - content.keys():
        return None
    meta = content['meta']
    if not isinstance(meta, dict) or not isinstance(meta.get('iter'), int):
        return None
    return str(meta.get('time', '')), meta['iter']


def _warn_of_damage(file: Path, damage: str) -> None:
    _warn(f'{file} is damaged, {damage}: it is left as it is, and not used')


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
