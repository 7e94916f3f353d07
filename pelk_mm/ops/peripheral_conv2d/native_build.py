"""Builds ``native.cpp`` at first use, with the compiler that is there, into a cache on disk.

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
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name('native.cpp')
CACHE_VARIABLE = 'PELK_MM_CACHE'
FLAGS_VARIABLE = 'PELK_MM_CXXFLAGS'


class BuildError(RuntimeError):
    """The native backend could not be built; the message says why."""


def cache_dir() -> Path:
    """Where built libraries are kept: ``$PELK_MM_CACHE``, else ``pelk_mm`` in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'pelk_mm'


def find_compiler() -> list[str]:
    """The C++ compiler as a command: ``$CXX``, or the first of c++, g++, clang++ on the path.

    Raises:
        BuildError: If there is none.
    """
    if os.environ.get('CXX'):
        return shlex.split(os.environ['CXX'])
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise BuildError('no C++ compiler found (set CXX, or install g++ or clang++)')


@cache
def load_library(double: bool) -> ctypes.CDLL | BuildError:
    """The compiled library for fp64, or for fp32 and the 16-bit types; or why it cannot be had, as a value.

    The outcome is kept for the life of the process; a failure is warned of once.

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
    flags += ['-DPELK_DOUBLE'] * double + shlex.split(os.environ.get(FLAGS_VARIABLE, ''))
    key = '\n'.join([SOURCE.read_text(), *compiler, _compiler_version(compiler), *flags, _cpu()])
    name = f'native-{"fp64" if double else "fp32"}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so'
    folder = cache_dir()
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    logger.info('building the native backend of peripheral_conv2d (a few seconds, once): %s', target)
    # Built beside and renamed, so that processes that build at the same time never see half a file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / name
        command = [*compiler, str(SOURCE), '-o', str(output), *flags]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise BuildError(f'{shlex.join(command)} failed:\n{result.stderr.strip()[-2000:]}')
        os.replace(output, target)
    return target


def _openmp_flags() -> list[str]:
    """Flags that bind OpenMP to the runtime torch has loaded, so that both share one pool of threads."""
    bundled = sorted((Path(torch.__file__).parent / 'lib').glob('libgomp*.so*'))
    bundled += sorted((Path(torch.__file__).parent.parent / 'torch.libs').glob('libgomp*.so*'))
    if sys.platform == 'darwin':
        omp = Path(torch.__file__).parent / 'lib' / 'libomp.dylib'
        return ['-Xclang', '-fopenmp', str(omp)] if omp.exists() else []
    return ['-fopenmp'] + [str(path) for path in bundled[:1]]


def _compiler_version(compiler: list[str]) -> str:
    try:
        result = subprocess.run([*compiler, '--version'], capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f'the C++ compiler {shlex.join(compiler)} does not run: {error}') from error
    return result.stdout


def _cpu() -> str:
    """What ``-march=native`` depends on: the processor's features."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(('flags', 'features'))), platform.processor())
