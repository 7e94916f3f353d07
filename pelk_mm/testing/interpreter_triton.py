"""The Triton backend without a GPU: a process in which kernels run in Triton's interpreter, or only compile.

Triton reads ``TRITON_INTERPRET`` when it is imported, so both kinds of use need processes of their own::

    with triton_process(interpret=True) as process:
        results = process.submit(run, inputs, grid).result()

In the interpreter, matrix products are made to round as tensor cores do; by itself it computes them in full fp32.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from pelk_mm.ops import SharingGrid

from .cases import Inputs, Results
from .cases import run as run_case


@contextmanager
def triton_process(interpret: bool) -> Iterator[Executor]:
    """Start a process to submit this module's functions to; it ends with the context.

    Args:
        interpret (bool): Whether ``TRITON_INTERPRET=1`` is set in it.
    """
    initializer = _imitate_tensor_cores if interpret else None
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), initializer) as process:
        # It starts with the first task, and only it is to see the variable.
        with patch.dict(os.environ, TRITON_INTERPRET=str(int(interpret))):
            process.submit(os.getpid).result()
        yield process


def run(inputs: Inputs, grid: SharingGrid, **settings) -> Results:
    """Return output and gradients from the Triton backend, in this process.

    Memory that the backend allocates holds NaN, so elements that it does not write are noticed.

    Args:
        inputs (Inputs): As for :func:`pelk_mm.testing.cases.run`.
        grid (SharingGrid): The cells.
        **settings: Replacements for names of the backend's module, to reach what small inputs do not.
    """
    from pelk_mm.ops.peripheral_conv2d import triton_backend

    def nan_filled(size, **kwargs):
        return torch.full(size, torch.nan, **kwargs)

    with patch.multiple(triton_backend, **settings) if settings else patch.dict({}), patch('torch.empty', nan_filled):
        return run_case(inputs, grid, 'triton')


def unrounded(inputs: Inputs, grid: SharingGrid) -> Tensor:
    """Return the output of the Triton backend in fp32, before it is rounded to the dtype of the inputs."""
    from pelk_mm.ops.peripheral_conv2d import triton_backend
    output = torch.full(inputs.x.shape, torch.nan)
    with patch('torch.empty', lambda *args, **kwargs: output):
        return triton_backend.forward(inputs.x, inputs.theta, inputs.bias.float(), grid)


def always(*args) -> bool:
    """Return True, for a predicate such as ``_is_wide``; unlike a lambda it can be sent to the process."""
    return True


class Resources(NamedTuple):
    """Resources of a compiled kernel: registers a thread, bytes spilled a thread, bytes of shared memory a program."""

    registers: int
    spills: int
    shared: int
    tensor_core: str
    """Tensor-core instructions in its PTX: ``'wgmma'``, ``'mma'`` or ``''``."""
    load_bits: int
    """Width of its widest load."""


def compile_kernel(kernel: str, tile: tuple[int, int, int, int], dtype: str, capability: int, align: int = 4,
                   wide: bool = False) -> Resources:
    """Compile a kernel for a GPU that need not be there.

    Args:
        kernel (str): ``'forward_kernel'`` or ``'theta_grad_kernel'``.
        tile (tuple[int, int, int, int]): G, BK, BN, warps.
        dtype (str): ``'fp32'``, ``'bf16'`` or ``'fp16'``.
        capability (int): 80 for compute capability 8.0, 90 for 9.0.
        align (int): ALIGN. Defaults to 4.
        wide (bool): WIDE. Defaults to False.
    """
    from pelk_mm.ops.peripheral_conv2d import kernels_triton, triton_backend
    constants = dict(ALIGN=align, WIDE=wide, G=tile[0], BK=tile[1], BN=tile[2])
    constants |= dict(BIAS=True) if kernel == 'forward_kernel' else dict(MAX_CELLS=triton_backend.MAX_CELLS)
    pointers = dict.fromkeys(('x', 'theta', 'bias', 'out', 'grad'), f'*{dtype}') | dict(partial='*fp32', table='*i32')
    return _compile(getattr(kernels_triton, kernel), constants, pointers, capability, tile[3])


def compile_concat_layer_norm(parts: tuple[int, int], dtype: str, capability: int) -> Resources:
    """Compile the kernel of ``concat_layer_norm`` for two numbers of channels; the first part has planes.

    Args:
        parts (tuple[int, int]): A and B.
        dtype (str): As in :func:`compile_kernel`.
        capability (int): As in :func:`compile_kernel`.
    """
    from pelk_mm.ops.concat_layer_norm import _WARPS, _kernel, tile_sizes

    # Triton compiles strides of 1 in.
    constants = dict(zip(('BP', 'BA', 'BB'), tile_sizes(*parts)), WEIGHT=True, BIAS=True, a_p=1, b_c=1)
    types = dict.fromkeys(('a', 'b', 'weight', 'bias', 'out'), f'*{dtype}') | dict(eps='fp32')
    return _compile(_kernel(), constants, types, capability, _WARPS)


def _compile(function, constants: dict, types: dict[str, str], capability: int, warps: int) -> Resources:
    """Compile a kernel whose other arguments are integers, and assemble its PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    signature = {name: 'constexpr' if name in constants else types.get(name, 'i32') for name in function.arg_names}
    compiled = triton.compile(
        ASTSource(function, signature, constants), GPUTarget('cuda', capability, 32), dict(num_warps=warps))
    ptx = compiled.asm['ptx']
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'kernel.ptx')
        source.write_text(ptx)
        target = re.search(r'\.target (\w+)', ptx)[1]
        # Triton brings several assemblers, and PTX is written for one of them.
        for ptxas in sorted(Path(triton.__file__).parent.glob('backends/nvidia/bin/ptxas*')):
            result = subprocess.run(
                [ptxas, '-v', f'--gpu-name={target}', source, '-o', Path(folder, 'kernel.cubin')],
                capture_output=True,
                text=True)
            if not result.returncode:
                break
        result.check_returncode()
        report = result.stderr
    loads = re.findall(r'ld\.global\S*?(?:\.v(\d))?\.b(\d+)', ptx)
    return Resources(
        registers=int(re.search(r'Used (\d+) registers', report)[1]),
        spills=int(re.search(r'(\d+) bytes spill stores', report)[1]),
        shared=compiled.metadata.shared,
        tensor_core='wgmma' if 'wgmma.mma_async' in ptx else 'mma' if 'mma.sync' in ptx else '',
        load_bits=max(int(count or 1) * int(bits) for count, bits in loads))


def specialized_parameters(kernel: str) -> tuple[str, ...]:
    """Return the parameters of a kernel for which Triton compiles anew when a value is 1 or divisible by 16."""
    from pelk_mm.ops.peripheral_conv2d import kernels_triton
    return tuple(parameter.name for parameter in getattr(kernels_triton, kernel).params
                 if not parameter.is_constexpr and not parameter.do_not_specialize)


def _imitate_tensor_cores() -> None:
    """Make the interpreter's matrix products and casts to bf16 round as a GPU's do.

    TF32 operands lose their low 13 bits, products are exact, and sums are truncated to fp32 after every 8 (TF32) or
    16 (bf16) products: the worst that has been reported of any generation.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
    torch.set_num_threads(1)

    def from_bf16(bits):
        return (bits.astype(np.uint32) << 16).view(np.float32)

    def operand(handle):
        if handle.dtype.scalar == tl.bfloat16:
            return from_bf16(handle.data).astype(np.float64)
        bits = np.ascontiguousarray(handle.data, np.float32).view(np.uint32)
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)

    def truncate(value):
        nearest = value.astype(np.float32)
        return np.where(np.abs(nearest) > np.abs(value), np.nextafter(nearest, np.float32(0)), nearest)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        left, right, acc = operand(a), operand(b), d.data
        depth = 16 if a.dtype.scalar == tl.bfloat16 else 8
        for start in range(0, left.shape[1], depth):
            acc = truncate(acc + left[:, start:start + depth] @ right[start:start + depth])
        return TensorHandle(acc, tl.float32)

    plain_cast = InterpreterBuilder.cast_impl

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return plain_cast(self, src, dst_type)
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16().view(torch.int16).numpy()
        return TensorHandle(rounded.view(np.uint16), tl.bfloat16)

    plain_call = InterpretedFunction.__call__
    prepared = set()

    def call(self, *args, **kwargs):
        # The interpreter replaces Triton's names at every call of a function. Once does, and takes a tenth of the time.
        if self.fn in prepared:
            return self.rewrite()(*args, **kwargs)
        prepared.add(self.fn)
        return plain_call(self, *args, **kwargs)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpretedFunction.__call__ = call
    # Offsets of masked lanes may wrap around, as on a GPU; checking each sum for it costs more than all the rest.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    np.seterr(all='ignore')
