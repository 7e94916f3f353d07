"""Compile a kernel with NVRTC, through ctypes; cubins are cached on disk like the native backend's libraries.

No GPU, driver, toolkit or header is needed. NVRTC is the one that PyTorch's wheels bring, or an installed toolkit's.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from ..native_build import BuildError, content_of, find_or_make
from .plan import Variant

SOURCES = Path(__file__).parent
# Functions without annotation run on the device; inlining decides which arrays stay in registers.
FLAGS = ('--std=c++17', '--device-as-default-execution-space')


@cache
def load_library() -> ctypes.CDLL | BuildError:
    """Return NVRTC, of the CUDA version that PyTorch is built for if it is built for one, or why it is missing."""
    version = torch.version.cuda.partition('.')[0] if torch.version.cuda else '*'
    packages = find_spec('nvidia')
    folders = [Path(folder) for folder in packages.submodule_search_locations or ()] if packages else []
    # CUDA 12 has a package for each library, CUDA 13 one for all.
    files = [file for folder in folders for file in sorted(folder.glob(f'*/lib/libnvrtc.so.{version}'), reverse=True)]
    # PyTorch for CUDA from other sources has it beside its own libraries, or relies on an installed toolkit.
    files += sorted(Path(torch.__file__).parent.glob(f'lib/libnvrtc.so.{version}'))
    names = [*map(str, files), 'libnvrtc.so' if version == '*' else f'libnvrtc.so.{version}']
    for name in names:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    return BuildError(f'NVRTC is not installed ({names[-1]}; PyTorch for CUDA brings it: nvidia-cuda-nvrtc)')


def cubin(variant: Variant, architecture: str) -> bytes:
    """Return the machine code of a kernel, from the cache or compiled.

    Args:
        variant (Variant): The kernel and its macros.
        architecture (str): E.g. ``'sm_90'``.

    Raises:
        BuildError: If it does not compile, there is no NVRTC, or no folder of the cache can be used.
    """
    key = '\n'.join([source_digest(), repr(variant), architecture, *FLAGS, version()])
    name = f'{variant.kernel}-{architecture}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.cubin'
    return content_of(find_or_make(name, lambda path: path.write_bytes(compile_cubin(variant, architecture)[0])))


def version() -> str:
    """Return the version of NVRTC, e.g. ``'13.0'``."""
    numbers = (ctypes.c_int * 2)()
    _library().nvrtcVersion(ctypes.byref(numbers, 0), ctypes.byref(numbers, 4))
    return '{}.{}'.format(*numbers)


class Resources(NamedTuple):
    """Registers and bytes spilled by a thread."""

    registers: int
    spills: int


def resources(variant: Variant, architecture: str) -> Resources:
    """Compile a kernel for what it needs; arguments and errors as :func:`cubin`.

    It is an error too if the assembler has made asynchronous products wait for each other.
    """
    report = compile_cubin(variant, architecture)[1]
    if 'wgmma.mma_async instructions are serialized' in report:
        raise BuildError(f'the products of {variant.kernel} are serialized: {report[:2000]}')
    registers, spills = re.search(r'Used (\d+) registers', report), re.search(r'(\d+) bytes spill stores', report)
    if registers is None or spills is None:
        raise BuildError(f'NVRTC reports no resources of {variant.kernel}: {report[-2000:]}')
    return Resources(int(registers[1]), int(spills[1]))


def source_digest() -> str:
    """Return a digest of all kernels and headers."""
    files = sorted(file for file in SOURCES.iterdir() if file.suffix in ('.cu', '.h'))
    return hashlib.sha256(b'\n'.join(file.name.encode() + b'\n' + file.read_bytes() for file in files)).hexdigest()


def compile_cubin(variant: Variant, architecture: str) -> tuple[bytes, str]:
    """Compile, and return the machine code and the assembler's report of registers and spills.

    Raises:
        BuildError: If it does not compile; the message has the compiler's. Or if there is no NVRTC.
    """
    library = _library()
    headers = sorted(SOURCES.glob('*.h'))
    source = SOURCES / f'{variant.kernel}.cu'
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(
        ctypes.byref(program), source.read_bytes(), source.name.encode(), len(headers),
        _strings([header.read_bytes() for header in headers]), _strings([header.name.encode() for header in headers])))
    try:
        flags = [f'--gpu-architecture={architecture}', '--ptxas-options=-v', *FLAGS]
        flags += [f'-D{name}={value}' for name, value in variant.macros]
        status = library.nvrtcCompileProgram(program, len(flags), _strings([flag.encode() for flag in flags]))
        log = _get(library, 'ProgramLog', program).decode(errors='replace').strip('\0')
        if status:
            raise BuildError(f'{source.name} does not compile for {architecture} with {" ".join(flags)}:\n'
                             f'{log[-2000:]}')
        return _get(library, 'CUBIN', program), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _library() -> ctypes.CDLL:
    library = load_library()
    if isinstance(library, BuildError):
        raise library
    return library


def _get(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f'nvrtcGet{what}Size')(program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f'nvrtcGet{what}')(program, content))
    return content.raw


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise BuildError(f'NVRTC: {library.nvrtcGetErrorString(status).decode()}')


def _strings(values: list[bytes]) -> ctypes.Array:
    return (ctypes.c_char_p * len(values))(*values)
