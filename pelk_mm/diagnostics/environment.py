"""Check whether an environment can train, test and run the op fast, and how to fix it if not.

No package that could be broken is imported here: each is tried in its own process.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..install_hints import install_line
from . import probes
from .finding import Finding, error, note, ok

# The two known stacks: by import name, how the package is distributed in either.
STACKS = {
    'onedl':
    dict(
        mmcv='onedl-mmcv',
        mmengine='onedl-mmengine',
        mmseg='onedl-mmsegmentation',
        mmdet='onedl-mmdetection',
        mmpretrain='onedl-mmpretrain'),
    'openmmlab':
    dict(mmcv='mmcv', mmengine='mmengine', mmseg='mmsegmentation', mmdet='mmdet', mmpretrain='mmpretrain'),
}
_SETUP_SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'setup_env.sh'
# Other packages that bring the module mmcv, and overwrite it.
RIVALS = ('mmcv-lite', 'mmcv-full')
OTHERS = ('torch', 'torchvision', 'triton', 'numpy', 'setuptools', 'pelk-mm')

TORCH_PAIR = 'pip install torch==2.15.0 torchvision==0.29.2'
_REINSTALL_TORCH = TORCH_PAIR.replace('install', 'install --force-reinstall')
_STAND_IN = 'python -m pelk_mm.mmcv_ops install  (torchvision does the work of its operators)'
_BUILD_OPS = ('pip uninstall -y {mmcv}, pip install {pin} and ' + _STAND_IN + ', or compile it for this PyTorch:\n'
              'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall '
              '--no-binary {mmcv} {pin}')

# Errors of imports, as regular expressions, and their fixes. ``{name}`` is the match of the first group; ``{setup}``
# sets up everything.
FIXES = (
    (r"No module named 'mmcv\._ext'", _STAND_IN),
    (r'mmcv/_ext.*|_ext\.\S*: undefined symbol', 'mmcv was compiled with another PyTorch: ' + _BUILD_OPS),
    (r'torchvision::nms does not exist|torchvision.*undefined symbol', '{torchvision}'),
    (r"No module named 'pkg_resources'", 'pip install setuptools==81.0.0  (82 dropped pkg_resources)'),
    (r'libGL\.so|libgthread', 'pip install --force-reinstall --no-deps opencv-python-headless  (no display is needed)'),
    (r'(MMCV|MMEngine)==\S+ is used but', 'pip install "pelk-mm[{stack}]"  (versions that fit each other)'),
    (r'compiled using NumPy 1|numpy\.core\.multiarray failed', 'pip install numpy==2.2.6, or what the error asks for'),
    (r'needs (\w+), which is not installed', '{install}'),
    (r"No module named 'torch'", TORCH_PAIR),
    (r"No module named 'torchvision'", '{torchvision}'),
    (r"No module named 'mm\w+'", '{setup}'),
    (r"No module named '([\w.]+)'", '{install}'),
)


def examine_environment(parts: Sequence[str] = (*probes.PACKAGES, 'devices', 'backends')) -> list[Finding]:
    """Try the parts of what this Python has installed, by default all."""
    return judge(installed_versions(), run_probes(parts), sys.version_info[:2])


def installed_versions() -> dict[str, str]:
    """Return versions by name of the distribution, of those that matter here and are installed."""
    wanted = [name for stack in STACKS.values() for name in stack.values()]
    versions = {}
    for name in (*OTHERS, *wanted, *RIVALS):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def run_probes(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run probes one by one; a crash of their process is reported as an error, and the next ones still run."""
    results: dict[str, dict[str, Any]] = {}
    while len(results) < len(names):
        with ProcessPoolExecutor(1, get_context('spawn'), probes.be_quiet) as process:
            for name in names[len(results):]:
                try:
                    results[name] = process.submit(probes.run, name).result()
                except BrokenProcessPool:
                    results[name] = dict(error='the Python process crashed')
                    break
    return results


def judge(versions: Mapping[str, str], results: Mapping[str, Mapping[str, Any]],
          python: tuple[int, int]) -> list[Finding]:
    """Turn :func:`installed_versions` and the results of :func:`run_probes` into findings."""
    imports = {name: result for name, result in results.items() if name not in ('devices', 'backends')}
    findings = [_python(python), *(_imported(name, result, versions) for name, result in imports.items())]
    findings += [*_combinations(versions), *_builds(results)]
    devices = results.get('devices', {})
    if devices and 'error' not in devices:
        findings += _devices(devices, results.get('mmcv.ops', {}), versions)
    findings.append(_compiler())
    findings += [_backends(*each) for each in results.get('backends', {}).get('reasons', {}).items()]
    findings += [
        error(name, results[name]['error']) for name in ('devices', 'backends')
        if 'error' in results.get(name, {}) and 'error' not in results.get('torch', {})
    ]
    return findings


def _python(version: tuple[int, int]) -> Finding:
    text = '{}.{}'.format(*version)
    if version < (3, 10):
        return error('Python', f'{text}, 3.10 or later is needed', 'Make an environment with Python 3.11')
    if version > (3, 13):
        return note('Python', f'{text}; tested are 3.10 to 3.13')
    return ok('Python', f'{text}, {sys.executable}')


def _imported(name: str, result: Mapping[str, Any], versions: Mapping[str, str]) -> Finding:
    if 'error' not in result:
        return ok(name, result['version'] or 'works')
    text = ' '.join(result['error'].split())
    stack = _stack(versions)
    for pattern, fix in FIXES:
        match = re.search(pattern, text)
        if match:
            mmcv = STACKS[stack]['mmcv']
            pin = f'{mmcv}=={versions[mmcv]}' if mmcv in versions else mmcv
            missing = match.group(1) if match.re.groups else None
            fix = fix.format(
                setup=_setup(stack),
                stack=stack,
                install=install_line(missing or ''),
                torchvision=_fitting_torchvision(versions),
                mmcv=mmcv,
                pin=pin)
            break
    else:
        fix = f'In a new environment: {_setup(stack)}'
    return error(name, text[:300], fix)


def _combinations(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Report combinations that are known to be bad, also if no import fails."""
    twice = [(name, STACKS['openmmlab'][module]) for module, name in STACKS['onedl'].items()
             if name in versions and STACKS['openmmlab'][module] in versions]
    for name, other in twice:
        yield error('two stacks', f'{name} and {other} are both installed, over one another',
                    f'pip uninstall -y {name} {other}, and install one of them again: pip install {name}')
    for rival in RIVALS:
        if rival in versions:
            yield error(
                'mmcv', f'{rival} brings the module mmcv too, and lacks what is needed here',
                f'pip uninstall -y {rival}, and install mmcv again: pip install --force-reinstall --no-deps '
                f'{STACKS[_stack(versions)]["mmcv"]}')
    stacks = {stack for stack, names in STACKS.items() if any(name in versions for name in names.values())}
    if len(stacks) > 1 and not twice:
        yield error(
            'two stacks',
            'packages of both stacks are mixed: ' + ', '.join(name for names in STACKS.values()
                                                              for name in names.values() if name in versions),
            f'Take one, in a new environment: {_setup("onedl")}')
    torch, torchvision = versions.get('torch'), versions.get('torchvision')
    if torch and _numbers(torch) < (2, 8):
        yield error('torch', f'{torch}, 2.8 or later is needed', TORCH_PAIR)
    if torch and torchvision and _numbers(torch) >= (2, 0) and (
            min(_numbers(torchvision)[1], 29) != _minor_of_torchvision(torch)):
        yield error('torchvision', f'{torchvision} is not for torch {torch}', _fitting_torchvision(versions))
    if versions.get('mmengine') and _numbers(versions.get('setuptools', '0')) >= (82, 0):
        yield error(
            'setuptools', f'{versions["setuptools"]} dropped pkg_resources, which mmengine '
            f'{versions["mmengine"]} imports', 'pip install setuptools==81.0.0')
    if versions.get('mmengine') and torch and _numbers(torch) >= (2, 6):
        yield note(
            'resuming', f'mmengine {versions["mmengine"]} cannot resume with torch >= 2.6 by '
            "itself; this repository's tools can, scripts of your own after pelk_mm.compat.setup()")


def _builds(results: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Check that PyTorch and torchvision are built for the same CUDA; versions have it behind a plus."""
    torch, torchvision = (results.get(name, {}).get('version', '') for name in ('torch', 'torchvision'))
    if '+' in torch and '+' in torchvision and torch.partition('+')[2] != torchvision.partition('+')[2]:
        yield error('torchvision', f'{torchvision} is built for another CUDA than torch {torch}',
                    'pip install --force-reinstall -r requirements/torch.txt')


def _devices(devices: Mapping[str, Any], ops: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[Finding]:
    built_for = devices['built_for']
    if devices['names']:
        yield ok('CUDA', f'{built_for}, ' + ', '.join(devices['names']))
        for name, capability in zip(devices['names'], devices['capabilities']):
            # Binaries run on later minor versions of the same major one.
            majors = [
                architecture for architecture in devices['architectures']
                if re.fullmatch(rf'sm_{capability[0]}\d[a-z]*', architecture)
                and int(re.sub(r'\D', '', architecture)) <= 10 * capability[0] + capability[1]
            ]
            if not majors:
                yield error(
                    'CUDA', f'this PyTorch has no kernels for {name} (sm_{capability[0]}{capability[1]}), only '
                    f'{", ".join(devices["architectures"])}', 'Install a PyTorch built for it, see pytorch.org')
        if ops and 'error' not in ops and not re.search(r'\d', str(ops.get('cuda'))):
            yield error(
                'mmcv.ops', 'compiled for the CPU only: detection fails on the GPU',
                'PELK_MM_MMCV_OPS=torchvision in the environment of our tools, or mmcv without operators: '
                f'pip install --force-reinstall --no-deps --no-cache-dir {STACKS[_stack(versions)]["mmcv"]}')
        if 'triton' not in versions:
            yield note('triton', 'not installed: the op runs without its GPU kernels',
                       'pip install triton, in the version that torch asks for')
    elif devices['hidden']:
        yield ok('CUDA', 'GPUs are hidden by CUDA_VISIBLE_DEVICES')
    elif devices['driver'] and built_for:
        yield error('CUDA', f'a driver is there, but PyTorch for CUDA {built_for} sees no GPU',
                    'Run nvidia-smi: the driver may be too old for this CUDA.')
    elif devices['driver']:
        yield error('CUDA', 'a driver is there, but this PyTorch is built for the CPU only', _REINSTALL_TORCH)
    else:
        yield ok('CUDA', f'no GPU; {devices["threads"]} CPU threads')
    if 'triton' in versions:
        yield ok('triton', versions['triton'])


def _compiler() -> Finding:
    commands = shlex.split(os.environ.get('CXX', ''))
    commands = commands or [name for name in ('c++', 'g++', 'clang++') if shutil.which(name)]
    if commands and shutil.which(commands[0]):
        return ok('compiler', commands[0])
    return note('compiler', 'no C++ compiler: the native CPU backend cannot be built, slower ones are used',
                'apt-get install g++, or set CXX')


def _backends(device: str, reasons: Mapping[str, str | None]) -> Finding:
    usable = [name for name, reason in reasons.items() if reason is None]
    others = '; '.join(f'not {name}: {" ".join(reason.split())[:160]}' for name, reason in reasons.items() if reason)
    return ok(f'op on {device}', ', '.join(usable) + (f' ({others})' if others else ''))


def _fitting_torchvision(versions: Mapping[str, str]) -> str:
    if 'torch' not in versions:
        return TORCH_PAIR
    minor = _minor_of_torchvision(versions['torch'])
    wanted = f'==0.{minor}.*' if minor < 29 else '>=0.29'
    return f'pip install "torchvision{wanted}"  (for torch {versions["torch"]})'


def _minor_of_torchvision(torch: str) -> int:
    """Return the minor version of torchvision for a PyTorch 2: one each, until 0.29 took every later PyTorch."""
    return min(_numbers(torch)[1] + 15, 29)


def _setup(stack: str) -> str:
    """Return the command that sets up a stack: a script in a clone of the repository, pip for who installed a wheel."""
    if _SETUP_SCRIPT.is_file():
        return f'bash {_SETUP_SCRIPT}, and use its Python: source .venv/bin/activate'
    return f'pip install "pelk-mm[{stack}]"'


def _stack(versions: Mapping[str, str]) -> str:
    return 'openmmlab' if 'mmengine' in versions and 'onedl-mmengine' not in versions else 'onedl'


def _numbers(version: str) -> tuple[int, int]:
    major, minor = (re.findall(r'\d+', version) + ['0'])[:2]
    return int(major), int(minor)
