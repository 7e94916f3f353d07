"""Choose the checkpoint to resume from: the newest undamaged one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.logging import print_log

from .atomic import PARTIAL
from .loading import checkpoint_error, safe_load

# The entries that training needs to resume. Best checkpoints and published ones lack some of them.
TRAINING_STATE = {'meta', 'state_dict', 'message_hub', 'optimizer'}


def check_undamaged(path: str) -> None:
    """Raise a ValueError that names the undamaged files beside a damaged one."""
    damage = checkpoint_error(path)
    if damage is None:
        return
    others = [str(file) for file in _newest_first(Path(path).parent) if checkpoint_error(file, checksums=False) is None]
    hint = f'Undamaged ones beside it, the newest first: {", ".join(others[:3])}. ' if others else ''
    raise ValueError(f'--resume: {path} is damaged, {damage}. {hint}Name another one, or none: --resume without a file '
                     'takes the last undamaged checkpoint of the work directory')


def find_last_checkpoint(work_dir: str | Path) -> str | None:
    """Find the checkpoint that ``--resume`` without a file resumes from.

    It is the one that ``last_checkpoint`` names, or one that was saved later. If that is damaged, it is the undamaged
    one that was saved last. The log names every damaged file; they are left as they are.

    Args:
        work_dir (str | Path): Of the training.

    Returns:
        str | None: The checkpoint. None if there is no undamaged one.
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
            _warn(f'{part} is an incomplete file of a process that was killed: it is not used, and you may delete it')
    candidates = [file for file in files if _is_undamaged(file, checksums=False)]
    for file in _in_order(candidates, first, pointer):
        if _is_undamaged(file):
            print_log(f'{file} is the last undamaged checkpoint of {work_dir}', logger='current')
            return str(file)
    _warn(f'{work_dir} holds no undamaged checkpoint to resume from: training starts at its beginning')
    return None


def _read_pointer(pointer: Path) -> str:
    """Read which checkpoint ``last_checkpoint`` names, in the work directory if that was moved; '' without one."""
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
    """Yield the files that training can resume from, the best first.

    The named one counts more than later iterations: whoever went back to an earlier checkpoint has older files of later
    iterations beside it. Only a file that is younger than the pointer is of a process that was killed before it could
    update the pointer.
    """
    rest = files
    if named in files:
        since = pointer.stat().st_mtime_ns
        younger = _by_progress(file for file in files if file.stat().st_mtime_ns > since and file != named)
        reached = _progress(named) if younger else None
        later = [file for state, file in younger if reached is None or state > reached]
        yield from [*later, named]
        rest = [file for file in files if file not in later and file != named]
    yield from (file for _, file in _by_progress(rest))


def _by_progress(files: Iterable[Path]) -> list[tuple[tuple[str, int], Path]]:
    return sorted(((state, file) for file in files if (state := _progress(file))), reverse=True)


def _progress(file: Path) -> tuple[str, int] | None:
    """Return when a checkpoint was saved and after which iteration; None if training cannot resume from it."""
    try:
        content = safe_load(file, 'meta')
    except (OSError, ValueError) as error:
        _warn(f'{file} is not used: {error}')
        return None
    if not isinstance(content, dict) or TRAINING_STATE - content.keys():
        return None
    meta = content['meta']
    if not isinstance(meta, dict) or not isinstance(meta.get('iter'), int):
        return None
    return str(meta.get('time', '')), meta['iter']


def _is_undamaged(file: Path, checksums: bool = True) -> bool:
    damage = checkpoint_error(file, checksums)
    if damage is not None:
        _warn(f'{file} is damaged, {damage}: it is left as it is, and not used')
    return damage is None


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
