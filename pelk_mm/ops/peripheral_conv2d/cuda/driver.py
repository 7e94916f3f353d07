"""Load kernels into a device and launch them on PyTorch's stream, through ctypes on the CUDA driver."""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch

from ..native_build import BuildError
from .nvrtc import cubin, load_library
from .plan import Launch, Variant

WGMMA_VARIABLE = 'PELK_MM_WGMMA'
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_WGMMA_CAPABILITY = (9, 0)


def why_not(device: torch.device) -> str | None:
    """Return why kernels cannot run on a device, or None if they can."""
    if device.type != 'cuda':
        return f'x is on {device.type}: needs a CUDA device'
    if torch.version.hip is not None:
        return 'AMD GPUs are not supported'
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return 'needs a GPU of compute capability 8.0 or newer, got {}.{}'.format(*capability)
    library = load_library()
    return str(library) if isinstance(library, BuildError) else None


def has_wgmma(device: torch.device) -> bool:
    """Return whether a device has wgmma (compute capability 9.0 only) and ``PELK_MM_WGMMA=0`` does not turn it off."""
    return torch.cuda.get_device_capability(device) == _WGMMA_CAPABILITY and os.environ.get(WGMMA_VARIABLE) != '0'


def shared_limit(device: torch.device) -> int:
    """Return the bytes of shared memory that a block may have."""
    # Not among the attributes that PyTorch's type stubs name.
    return getattr(torch.cuda.get_device_properties(device), 'shared_memory_per_block_optin')  # noqa: B009


def resident_blocks(launch: Launch, device: torch.device) -> int:
    """Return how many blocks of a launch the device holds at a time."""
    return _resident_blocks(launch.variant, launch.threads, launch.shared, _index(device))


def launch(launch: Launch, blocks: tuple[int, int], arguments: tuple, device: torch.device) -> None:
    """Launch on PyTorch's current stream.

    Args:
        launch (Launch): Kernel, threads and shared memory.
        blocks (tuple[int, int]): Of the grid.
        arguments (tuple): The kernel's parameters as ctypes objects.
        device (torch.device): Where the tensors are.

    Raises:
        BuildError: If the kernel does not compile.
        RuntimeError: If the driver reports an error.
    """
    index = _index(device)
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
    with torch.cuda.device(index):
        function = _function(launch.variant, index)
        stream = ctypes.c_void_p(torch.cuda.current_stream(index).cuda_stream)
        _check(_driver().cuLaunchKernel(
            function, *blocks, 1, launch.threads, 1, 1, launch.shared, stream, pointers, None))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL('libcuda.so.1')


@cache
def _function(variant: Variant, index: int) -> ctypes.c_void_p:
    """Load a kernel into the device's current context, where it stays."""
    capability = torch.cuda.get_device_capability(index)
    # wgmma is outside of what later devices keep, and has a name of its own.
    suffix = 'a' if capability == _WGMMA_CAPABILITY else ''
    code = cubin(variant, 'sm_{}{}'.format(*capability) + suffix)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), code))
    _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, variant.kernel.encode()))
    limit = shared_limit(torch.device('cuda', index))
    _check(_driver().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, limit))
    return function


@cache
def _resident_blocks(variant: Variant, threads: int, shared: int, index: int) -> int:
    blocks = ctypes.c_int()
    with torch.cuda.device(index):
        _check(_driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(
            ctypes.byref(blocks), _function(variant, index), threads, ctypes.c_size_t(shared)))
    return max(1, blocks.value) * torch.cuda.get_device_properties(index).multi_processor_count


def _check(status: int) -> None:
    if status:
        message = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(message))
        raise RuntimeError(f'CUDA driver: {(message.value or b"unknown error").decode()} ({status})')
