"""Let every program of an environment run mmcv's operators by torchvision.

install puts mmcv/_ext.py where compiled operators would be, and never replaces these; remove deletes it again;
status reports which operators mmcv has, with exit code 1 if it has none.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from . import find_extension

MARK = '# Written by `python -m pelk_mm.mmcv_ops install`; `python -m pelk_mm.mmcv_ops remove` takes it away.'
TEXT = f"""{MARK}
import sys

from pelk_mm.mmcv_ops import extension

sys.modules[__name__] = extension
"""


def main() -> int:
    """Run the command of the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m pelk_mm.mmcv_ops', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', choices=('install', 'remove', 'status'))
    command = parser.parse_args().command
    mmcv = find_spec('mmcv')
    if mmcv is None or not mmcv.submodule_search_locations:
        return _say('mmcv is not installed in this environment: pip install onedl-mmcv==2.3.6', 1)
    folder = Path(mmcv.submodule_search_locations[0])
    if not (folder / 'ops').is_dir():
        return _say(f'{folder} has no mmcv.ops; is it mmcv-lite? pip uninstall mmcv-lite && pip install onedl-mmcv', 1)
    target = folder / '_ext.py'
    spec = find_extension()
    found = Path(spec.origin) if spec and spec.origin else None
    ours = target.is_file() and target.read_text(encoding='utf-8').startswith(MARK)
    try:
        return dict(install=_install, remove=_remove, status=_status)[command](target, found, ours)
    except PermissionError as error:
        return _say(f'{error.filename} cannot be changed: {error.strerror}. Run this as its owner.', 1)


def _install(target: Path, found: Path | None, ours: bool) -> int:
    if ours:
        return _say(f'Nothing to do: {target} is there.', 0)
    if found:
        return _say(f'Nothing done: mmcv has operators of its own, {found}.', 0)
    target.write_text(TEXT, encoding='utf-8')
    return _say(f'Wrote {target}: mmcv.ops now runs on torchvision and PyTorch in this environment.', 0)


def _remove(target: Path, found: Path | None, ours: bool) -> int:
    if not ours:
        return _say(f'Nothing to remove: {target} is not there{f"; {found} is not ours" if found else ""}.', 0)
    target.unlink()
    cache = target.parent / '__pycache__'
    for file in cache.glob('_ext.*.pyc'):
        file.unlink()
    if cache.is_dir() and not any(cache.iterdir()):
        cache.rmdir()
    return _say(f'Removed {target}.', 0)


def _status(target: Path, found: Path | None, ours: bool) -> int:
    if found and found != target:
        return _say(f'mmcv uses its compiled operators, {found}.', 0)
    if ours:
        return _say(f'mmcv uses torchvision and PyTorch in every program of this environment, by {target}.', 0)
    if found:
        return _say(f'mmcv uses {found}, which is not ours.', 0)
    return _say(
        'mmcv has no operators here. Tools of PeLK-MM, and configs with pelk_mm.mmcv_ops in custom_imports, use '
        'torchvision and PyTorch; `python -m pelk_mm.mmcv_ops install` does so for every program.', 1)


def _say(text: str, code: int) -> int:
    (sys.stderr if code else sys.stdout).write(text + '\n')
    return code


if __name__ == '__main__':
    sys.exit(main())
