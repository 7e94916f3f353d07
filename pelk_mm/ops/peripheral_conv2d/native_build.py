"""Build ``csrc/native.cpp`` at first use, with the installed compiler, into a cache on disk.

No torch header is needed, so a build takes a few seconds, and nothing has to be compiled at install time.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).parent / 'csrc' / 'native.cpp'
CACHE_VARIABLE = 'PELK_MM_CACHE'
FLAGS_VARIABLE = 'PELK_MM_CXXFLAGS'
_DIGEST_SIZE = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """The native backend could not be built; the message says why."""


def cache_dirs() -> list[Path]:
    """Return the folders of built libraries, in the order of preference.

    ``$PELK_MM_CACHE``; without it ``pelk_mm`` in the user's cache folder, and where that cannot be written,
    a folder of the user's own among temporary files.

    Raises:
        BuildError: If ``$PELK_MM_CACHE`` names a user who does not exist.
    """
    if os.environ.get(CACHE_VARIABLE):
        try:
            return [Path(os.environ[CACHE_VARIABLE]).expanduser().absolute()]
        except RuntimeError as error:
            got = os.environ[CACHE_VARIABLE]
            raise BuildError(f'{CACHE_VARIABLE} must be a folder, got {got!r}: {error}') from error
    folders = []
    # Without HOME and an entry in the list of users there is no home.
    with suppress(RuntimeError):
        folders.append(Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser().absolute() / 'pelk_mm')
    # No folder for temporary files, or one of this name that somebody else has made.
    with suppress(OSError):
        folders.append(_temporary_dir())
    return folders


def _temporary_dir() -> Path:
    user = os.getuid() if hasattr(os, 'getuid') else 0
    folder = Path(tempfile.gettempdir(), f'pelk_mm-{user}')
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != user:
        raise PermissionError(f'{folder} belongs to another user')
    return folder


def find_compiler() -> list[str]:
    """Return the C++ compiler as a command: ``$CXX``, or the first of c++, g++, clang++ on the path.

    Raises:
        BuildError: If there is no compiler, or ``$CXX`` is not a command.
    """
    command = _words('CXX')
    if command:
        return [os.path.expanduser(command[0]), *command[1:]]
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise BuildError('no C++ compiler found (set CXX, or install g++ or clang++)')


def _words(variable: str) -> list[str]:
    """Split an environment variable as a shell does."""
    value = os.environ.get(variable, '')
    try:
        return shlex.split(value)
    except ValueError as error:
        raise BuildError(f'{variable} must be words as a shell takes them, got {value!r}: {error}') from error


@cache
def load_library(double: bool) -> ctypes.CDLL | BuildError:
    """Return the compiled library for fp64, or for fp32 and the 16-bit types, or the error of its build.

    The result is kept for the life of the process; a failure is logged once.

    Args:
        double (bool): Which of the two.
    """
    try:
        return ctypes.CDLL(str(_build(double)))
    except (BuildError, OSError) as error:
        failure = error if isinstance(error, BuildError) else BuildError(str(error))
        warnings.warn(f'the native CPU backend of peripheral_conv2d is not available, a slower one is used: {failure}',
                      stacklevel=2)
        return failure


def _build(double: bool) -> Path:
    compiler = find_compiler()
    machine_flag = '-march=native' if platform.machine() in ('x86_64', 'AMD64') else '-mcpu=native'
    flags = ['-O3', machine_flag, '-std=c++17', '-fPIC', '-shared', *_openmp_flags()]
    flags += ['-DPELK_DOUBLE'] * double + _words(FLAGS_VARIABLE)
    key = '\n'.join([*_sources(), *compiler, _compiler_version(compiler), *flags, _cpu(), 'with digest'])
    digest = hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:16]
    command = [*compiler, str(SOURCE)]
    return find_or_make(f'native-{"fp64" if double else "fp32"}-{digest}.so',
                        lambda output: _compile(output, command, flags))


def find_or_make(name: str, make: Callable[[Path], object]) -> Path:
    """Return a compiled file of the cache; make it in the first folder that can be used if there is no undamaged one.

    It is followed by a digest: see :func:`content_of`.

    Args:
        name (str): Its name, with a digest of all that it depends on.
        make (Callable): Writes it to the path that it gets.

    Raises:
        BuildError: If no folder can be used. Those of ``make`` are passed on.
    """
    folders = cache_dirs()
    found = next((folder / name for folder in folders if _is_undamaged(folder / name)), None)
    if found:
        return found
    errors = []
    for folder in folders:
        try:
            return _make(folder, name, make)
        except OSError as error:
            errors.append(f'{folder}: {error}')
    raise BuildError(f'no folder for the compiled library can be used; set {CACHE_VARIABLE} to one that can be '
                     f'written. {"; ".join(errors)}')


def content_of(path: Path) -> bytes:
    """Return what was written to a file of :func:`find_or_make`."""
    return path.read_bytes()[:-_DIGEST_SIZE]


def _sources() -> list[str]:
    """Return the source and the headers beside it, each after its name."""
    return [f'{file.name}\n{file.read_text("utf-8")}' for file in (SOURCE, *sorted(SOURCE.parent.glob('*.h')))]


def _make(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    logger.info('compiling for peripheral_conv2d (a few seconds, once): %s', target)
    # Made beside it and renamed, so that processes that build at the same time never see an incomplete file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / name
        make(output)
        content = output.read_bytes()
        with output.open('ab') as file:
            file.write(hashlib.sha256(content).digest())
        os.replace(output, target)
    return target


def _compile(output: Path, command: list[str], flags: list[str]) -> None:
    command = [*command, '-o', str(output), *flags]
    result = _run(command)
    if result.returncode or not output.is_file():
        raise BuildError(f'{shlex.join(command)} failed:\n{result.stderr.strip()[-2000:] or "it wrote no library"}')


def _is_undamaged(library: Path) -> bool:
    """Return whether a file ends with the digest of its rest: loading a truncated one would kill the process."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST_SIZE]).digest() == content[-_DIGEST_SIZE:]


def _openmp_flags() -> list[str]:
    """Return the flags that bind OpenMP to the runtime torch has loaded, so that both share one pool of threads."""
    bundled = sorted((Path(torch.__file__).parent / 'lib').glob('libgomp*.so*'))
    bundled += sorted((Path(torch.__file__).parent.parent / 'torch.libs').glob('libgomp*.so*'))
    if sys.platform == 'darwin':
        omp = Path(torch.__file__).parent / 'lib' / 'libomp.dylib'
        return ['-Xclang', '-fopenmp', str(omp)] if omp.exists() else []
    return ['-fopenmp'] + [str(path) for path in bundled[:1]]


def _compiler_version(compiler: list[str]) -> str:
    try:
        result = _run([*compiler, '--version'])
    except OSError as error:
        raise BuildError(f'the C++ compiler {shlex.join(compiler)} does not run: {error}') from error
    return result.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess:
    # Messages of compilers are in the user's language and encoding.
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding='utf-8', errors='replace')


def _cpu() -> str:
    """Return the processor's features, on which ``-march=native`` depends."""
    try:
        lines = Path('/proc/cpuinfo').read_text(errors='replace').splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(('flags', 'features'))), platform.processor())
