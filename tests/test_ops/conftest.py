"""The CUDA backend's kernels in an emulator on the CPU (``cuda_emulator``): compiled by the C++ compiler at hand."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from pelk_mm.ops.peripheral_conv2d.cuda import backend, driver, nvrtc
from pelk_mm.ops.peripheral_conv2d.cuda.plan import Launch, Strided, Variant
from pelk_mm.ops.peripheral_conv2d.native_build import BuildError, find_compiler

EMULATOR = Path(__file__).parent / 'cuda_emulator'
PARAMETERS = {
    'forward_maps': ('Tensor', 'const void*', 'const void*', 'Tensor', 'Plan'),
    'theta_grad': ('Tensor', 'Tensor', 'float*', 'int', 'Plan'),
}
PARAMETERS['forward_planes'] = PARAMETERS['forward_maps']


class EmulatedError(AssertionError):
    """The emulator noticed a fault of a kernel."""


class Emulator:
    """Compiles variants of the kernels for the CPU and runs them in the place of ``driver``.

    Attributes:
        blocks (int): Blocks that the device holds at a time.
        seed (int): Of the order in which warps run.
        removed (int): Number of the barrier to leave out, -1 for none; fences, commits and waits of products count too.
        barriers (dict): Number of barriers met, by kernel.
        wgmma (bool): Whether the device has wgmma.
        counts (tuple): Of the last launch, multiply-adds of tensor cores and words of shared memory read and written.
    """

    def __init__(self, folder: Path, compiler: list[str]):
        self.folder, self.compiler = folder, compiler
        self.kernels: dict[tuple, tuple[ctypes.CDLL, int]] = {}
        self.recorded: dict[Variant, None] | None = None
        self.tensors: list[tuple[torch.Tensor, bool]] = []
        self.blocks, self.seed, self.removed = 3, 1, -1
        self.barriers: dict[str, int] = {}
        self.counts = (0, 0)
        self.wgmma = False
        self.edits: tuple[tuple[str, str, str], ...] = ()

    def compile(self, variants: list[tuple[Variant, tuple]]) -> None:
        """Compile variants, each with edits of the sources, into one library."""
        code = ['#include "device.h"', '#include "wgmma.h"', '#include "plan.h"']
        for number, (variant, edits) in enumerate(variants):
            source = self._sources(edits)
            parameters = ', '.join(f'*({name}*)a[{i}]' for i, name in enumerate(PARAMETERS[variant.kernel]))
            code += [f'namespace variant{number} {{', *(f'#define {name} {value}' for name, value in variant.macros)]
            code += [f'#include "{source / variant.kernel}.cu"',
                     f'static void run(void** a) {{ {variant.kernel}({parameters}); }}', '}']
            code += [f'#undef {name}' for name, _ in variant.macros]
        table = ', '.join(f'variant{number}::run' for number in range(len(variants)))
        code += [f'static void (*const kernels[])(void**) = {{{table}}};', '#include "run.h"']
        text = '\n'.join(code)
        path = self.folder / f'{hashlib.sha256(text.encode()).hexdigest()[:16]}.cpp'
        path.write_text(text)
        command = [*self.compiler, '-std=c++17', '-O1', '-w', '-shared', '-fPIC', '-U_FORTIFY_SOURCE',
                   '-DPELK_EMULATOR', f'-I{nvrtc.SOURCES}', f'-I{EMULATOR}', str(path), '-o',
                   str(path.with_suffix('.so'))]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[:4000]
        library = ctypes.CDLL(str(path.with_suffix('.so')))
        library.emulate.restype = ctypes.c_char_p
        library.get_count.restype = ctypes.c_longlong
        self.kernels |= {key: (library, number) for number, key in enumerate(variants)}

    def _sources(self, edits: tuple) -> Path:
        """The folder of the sources, or of a copy of them with ``(file, old, new)`` replaced."""
        if not edits:
            return nvrtc.SOURCES
        folder = self.folder / hashlib.sha256(repr(edits).encode()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        texts = {file.name: file.read_text() for file in nvrtc.SOURCES.glob('*.*') if file.suffix in ('.cu', '.h')}
        for file, old, new in edits:
            assert texts[file].count(old) == 1, f'{old!r} is not once in {file}'
            texts[file] = texts[file].replace(old, new)
        for name in texts.keys() - {'device.h', 'wgmma.h', 'plan.h'}:
            (folder / name).write_text(texts[name])
        return folder

    def prepare(self, calls: list[Callable[[], object]], edits: tuple = ((), )) -> None:
        """Compile in one go what the calls will launch, for each of the edits."""
        self.recorded = {}
        with self.installed():
            for call in calls:
                call()
        variants, self.recorded = self.recorded, None
        missing = [(variant, edit) for edit in edits for variant in variants if (variant, edit) not in self.kernels]
        if missing:
            self.compile(missing)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the backend launch here, on CPU tensors, with allocations that are NaN where it does not write."""

        def empty(size, **kwargs):
            return torch.full(size, torch.nan, **kwargs)

        with patch.multiple(driver, why_not=lambda device: None, shared_limit=lambda device: 232448, launch=self.launch,
                            has_wgmma=lambda device: self.wgmma, resident_blocks=lambda launch, device: self.blocks), \
                patch.object(backend.torch, 'empty', empty):
            yield

    def launch(self, launch: Launch, blocks: tuple[int, int], arguments: tuple, device: torch.device) -> None:
        """``driver.launch``."""
        if self.recorded is not None:
            self.recorded[launch.variant] = None
            return
        if (launch.variant, self.edits) not in self.kernels:
            self.compile([(launch.variant, self.edits)])
        library, number = self.kernels[launch.variant, self.edits]
        self._allow(library, launch, arguments)
        values = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        message = library.emulate(number, *blocks, launch.threads, launch.shared, values, self.seed, self.removed)
        self.barriers[launch.variant.kernel] = library.count_barriers()
        self.counts = library.get_count(0), library.get_count(1)
        if message:
            raise EmulatedError(f'{launch.variant}: {message.decode()}')

    @staticmethod
    def _allow(library: ctypes.CDLL, launch: Launch, arguments: tuple) -> None:
        """Pass on which memory the kernel may touch."""
        plan, macros = launch.plan, dict(launch.variant.macros)
        size = 4 if macros['DTYPE'] == '0' else 2
        theta = plan.C * plan.cells**2
        library.allow(None, 0, 0)
        spans = []
        for number, argument in enumerate(arguments):
            if isinstance(argument, Strided):
                last = (plan.N - 1) * argument.n + (plan.C - 1) * argument.c + (plan.H - 1) * argument.h + plan.W - 1
                spans.append((argument.data, (last + 1) * size, number == 3))
            elif isinstance(argument, ctypes.c_void_p) and argument.value:
                count = {1: theta * size, 2: plan.C * size}[number]
                if launch.variant.kernel == 'theta_grad':
                    count = launch.blocks[1] * theta * 4
                spans.append((argument.value, count, launch.variant.kernel == 'theta_grad'))
        for address, count, writable in spans:
            library.allow(ctypes.c_void_p(address), ctypes.c_longlong(count), writable)


@pytest.fixture(scope='session')
def emulator(tmp_path_factory):
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    return Emulator(tmp_path_factory.mktemp('emulator'), compiler)
