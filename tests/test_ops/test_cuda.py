"""The CUDA backend: its kernels in the emulator (``cuda_emulator``) against the reference; and what they compile to."""

import itertools
import json
import math
import re

import pytest
import torch

from pelk_mm.ops import SharingGrid, available_backends
from pelk_mm.ops.peripheral_conv2d.cuda import backend, driver, nvrtc, plan
from pelk_mm.ops.peripheral_conv2d.cuda.plan import Shape, Variant
from pelk_mm.ops.peripheral_conv2d.native_build import BuildError
from pelk_mm.testing.cases import CASES, GRIDS, POISON_CASES, PRECISION_CASES, Case, expected, poison, run
from pelk_mm.testing.tolerances import assert_close, relative_error

pytestmark = pytest.mark.slow

NAMES = ('output', 'x', 'theta', 'bias')
SUPPORTED = [case for case in CASES if max(case.shape[2:]) <= plan.MAX_SIDE]
HALF_IDS = ('grid-odd-widths', 'layout-channel_slice', 'one-pixel', 'channels-last-k51')
HALF_PRECISION = [case for case in CASES if case.id in HALF_IDS]
PRECISION = [case for case in PRECISION_CASES if case.id in ('7x7-k51-mean10', '28x28-k51-mean100', '56x56-k51-mean1')]
PRECISION += [Case('14x14-k47-mean100', (3, 1, 14, 14), GRIDS['k47'], mean=100.0)]
# Several sets of images for each group of threads, of several channels, and rows that fill no tile: by kernel.
SETS = {
    'forward_maps': Case('maps', (16, 2, 17, 19), GRIDS['k13']),
    'forward_planes': Case('planes', (70, 2, 5, 7), GRIDS['k13']),
    'theta_grad': Case('theta', (16, 2, 17, 19), GRIDS['k13']),
}
# Multiply-adds of tensor cores and words through shared memory a pixel, of the forward and of theta's gradient, as
# README.md states them.
COUNTS = {
    ('k51', 56, 4, torch.float32): ((2160, 33.5), (2400, 42.1)),
    ('k51', 56, 4, torch.bfloat16): ((720, 17.9), (800, 21.7)),
    ('k47', 14, 64, torch.float32): ((768, 15.4), (674, 43.1)),
}
# Faults that the tests must notice: (kernel, (file, old, new)).
FAULTS = {
    'low parts lost': ('forward_maps', ('numbers.h', 'low_parts(high, a, b));', '0u);')),
    'one block twice': ('forward_maps', ('core_mma.h', 'right[at], right[at + 1]', 'right[at], right[at]')),
    'a tap repeated': ('forward_maps', ('numbers.h', 'plan.cell_of[t + 1]', 'plan.cell_of[t]')),
    'box sums overflow': ('forward_maps', ('maps.h', 'GROWTH = bits_of(WIDEST - 1)', 'GROWTH = -2')),
    'rows in reach skipped': ('forward_maps', ('core_mma.h', '>= plan.first_y[a]', '> plan.first_y[a] + 15')),
    'another scale': ('forward_planes', ('forward_planes.cu', 'plan.scratch + 64 + m * 4', 'plan.scratch + 64')),
    'low products lost': ('forward_planes', ('forward_planes.cu', 'if constexpr (PARTS == 2)', 'if constexpr (false)')),
    'absent chunk counted': ('theta_grad', ('theta_grad.cu', 'if (!both) high', 'if (KG > 99) high')),
    'no padding of dy': ('theta_grad', ('theta_grad.cu', 'plan.H + 15) / 16 * 16', 'plan.H)')),
    'a gradient of the last set': ('theta_grad', ('theta_grad.cu', '&& n0 + plane < plan.N && column', '&& column')),
}


def by_id(case):
    return case.id


@pytest.fixture(autouse=True)
def exact():
    """Three products, as where PyTorch does not allow TF32."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def forward(case, inputs):
    return backend.forward(inputs.x, inputs.theta, inputs.bias, case.grid)


def theta_grad(case, inputs):
    return backend.theta_grad(inputs.x, inputs.grad_output, case.grid)


CALLS = dict(forward_maps=forward, forward_planes=forward, theta_grad=theta_grad)


@pytest.fixture(scope='module')
def kernels(emulator):
    """The emulator with all that these tests run, compiled in one go."""

    def calls(cases, *dtypes):
        return [lambda case=case, dtype=dtype, call=call: call(case, case.make(dtype)) for case in cases
                for dtype in dtypes for call in (forward, theta_grad)]

    with torch.backends.cudnn.flags(allow_tf32=False):
        emulator.prepare(calls([*SUPPORTED, *PRECISION, *POISON_CASES, *SETS.values()], torch.float32) +
                         calls(HALF_PRECISION, torch.bfloat16, torch.float16) +
                         calls([Case('work', (4, 1, 56, 56), GRIDS['k51'])], torch.bfloat16))
    return emulator


def check(kernels, case, dtype=torch.float32, bound=None):
    inputs = case.make(dtype)
    with kernels.installed():
        results = run(inputs, case.grid, 'cuda')
    for name, actual, right in zip(NAMES, results, expected(inputs, case.grid)):
        assert actual.dtype == dtype
        # Of few numbers one can be unlucky.
        assert_close(actual, right, f'{name} of {case.id}', bound if actual.numel() >= 100 else None)


@pytest.mark.parametrize('case', SUPPORTED, ids=by_id)
def test_output_and_gradients(kernels, case):
    check(kernels, case)


# Rounding the result costs 1.7e-3 and 2.1e-4, that of the box sums to fp16 the rest.
@pytest.mark.parametrize(('dtype', 'bound'), [(torch.bfloat16, 2e-3), (torch.float16, 3e-4)], ids=str)
@pytest.mark.parametrize('case', HALF_PRECISION, ids=by_id)
def test_half_precision(kernels, case, dtype, bound):
    check(kernels, case, dtype, bound)


@pytest.mark.parametrize('case', [*PRECISION, *SETS.values()], ids=by_id)
def test_fp32_error_bound(kernels, case):
    """A third of what is allowed."""
    check(kernels, case, bound=7e-7)


def test_one_product_where_pytorch_allows_tf32(kernels):
    case = SETS['forward_maps']
    inputs = case.make()
    right = expected(inputs, case.grid)
    with kernels.installed(), torch.backends.cudnn.flags(allow_tf32=True):
        pairs = (forward(case, inputs), right.output), (theta_grad(case, inputs), right.theta)
        errors = [relative_error(*pair) for pair in pairs]
    assert all(5e-5 < error < 5e-4 for error in errors), errors


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('case', POISON_CASES, ids=by_id)
def test_other_images_and_channels_are_unaffected(kernels, case, value):
    inputs, others = poison(case.make(), value)
    right = expected(case.make(), case.grid)
    with kernels.installed():
        output, grad_x, grad_theta, _ = run(inputs, case.grid, 'cuda')
    assert not output[1, 1].isfinite().all()
    assert_close(output[others], right.output[others])
    assert_close(grad_x, right.x)
    assert_close(grad_theta[[0, 2]], right.theta[[0, 2]])


@pytest.mark.parametrize('kernel', SETS)
@pytest.mark.parametrize(('x_scale', 'theta_scale'), [(1e37, 1e-30), (1e-30, 1e20), (1e-20, 1e-10)])
def test_any_magnitude(kernels, kernel, x_scale, theta_scale):
    """Planes of very different magnitude, next to the largest number and far below 1."""
    case = SETS[kernel]
    inputs = case.make()
    scales = torch.logspace(-4, 0, case.shape[0])[:, None, None, None]
    inputs = inputs._replace(x=inputs.x * x_scale * scales, theta=inputs.theta * theta_scale, bias=inputs.bias * 0)
    if kernel == 'theta_grad':
        inputs = inputs._replace(grad_output=inputs.grad_output * theta_scale)
    right = expected(inputs, case.grid)
    with kernels.installed():
        actual = CALLS[kernel](case, inputs)
    assert relative_error(actual.double() / x_scale / theta_scale,
                          (right.theta if kernel == 'theta_grad' else right.output) / x_scale / theta_scale) < 2e-6


def test_same_bits_in_any_order(kernels, monkeypatch):
    case = Case('planes', (70, 3, 5, 7), GRIDS['k13'])
    inputs = case.make()
    results = []
    with kernels.installed():
        for blocks, seed in ((1, 1), (2, 5), (7, 9)):
            monkeypatch.setattr(kernels, 'blocks', blocks)
            monkeypatch.setattr(kernels, 'seed', seed)
            results.append((forward(case, inputs), theta_grad(case, inputs)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@pytest.fixture
def one_block(kernels, monkeypatch):
    """All sets in one block of threads, one after the other."""
    monkeypatch.setattr(kernels, 'blocks', 1)
    monkeypatch.setattr(plan, '_THETA_GRAD_BLOCKS', 1)
    plan.plan_theta_grad.cache_clear()
    yield kernels
    plan.plan_theta_grad.cache_clear()


@pytest.mark.parametrize(('grid', 'side', 'images', 'dtype'), COUNTS, ids=str)
def test_work_of_a_pixel(one_block, grid, side, images, dtype):
    case = Case('work', (images, 1, side, side), GRIDS[grid])
    counts = []
    for call in (forward, theta_grad):
        with one_block.installed():
            call(case, case.make(dtype))
        multiply_adds, words = (count / (images * side**2) for count in one_block.counts)
        counts.append((round(multiply_adds), round(words, 1)))
    assert tuple(counts) == COUNTS[grid, side, images, dtype]


@pytest.mark.parametrize(('kernel', 'barriers'), [('forward_maps', 5), ('forward_planes', 5), ('theta_grad', 2)])
def test_every_barrier_is_missed(one_block, monkeypatch, kernel, barriers):
    case = SETS[kernel]
    inputs = case.make()
    with one_block.installed():
        CALLS[kernel](case, inputs)
        assert one_block.barriers[kernel] == barriers
        for number in range(barriers):
            monkeypatch.setattr(one_block, 'removed', number)
            with pytest.raises(AssertionError, match='race'):
                CALLS[kernel](case, inputs)


def test_faults_are_noticed(one_block, monkeypatch):
    with one_block.installed():
        for kernel in SETS:
            edits = tuple((edit, ) for owner, edit in FAULTS.values() if owner == kernel)
            one_block.prepare([lambda kernel=kernel: CALLS[kernel](SETS[kernel], SETS[kernel].make())], edits)
        for name, (kernel, edit) in FAULTS.items():
            case = SETS[kernel]
            inputs = case.make()
            # Images of different magnitude.
            scales = 2.0**torch.arange(len(inputs.x)).remainder(9)
            inputs = inputs._replace(x=(inputs.x + 3) * scales[:, None, None, None])
            right = expected(inputs, case.grid)
            monkeypatch.setattr(one_block, 'edits', (edit, ))
            try:
                actual = CALLS[kernel](case, inputs)
            except AssertionError:
                continue
            assert not relative_error(actual, right.theta if kernel == 'theta_grad' else right.output) < 2e-6, name


def test_says_why_not():
    x, theta = torch.zeros(1, 2, 8, 8), torch.zeros(2, 3, 3)
    assert available_backends(x, theta, GRIDS['k3'])['cuda'] == 'x is on cpu: needs a CUDA device'
    assert 'float64' in backend.why_not(x.double(), GRIDS['k3'])


@pytest.mark.parametrize(('grid', 'size', 'words'), [
    (GRIDS['k49'], (28, 28), None),
    (GRIDS['k51'], (65, 8), 'at most 64x64 .* got 65x8'),
    (SharingGrid.from_half([65, 1]), (64, 64), '65 taps wide'),
    (SharingGrid.dense(65), (64, 64), '65 row cells'),
    (SharingGrid.dense(65), (8, 8), None),
    (GRIDS['k51'], (56, 56), 'more than the 101376 bytes'),
    (SharingGrid.from_half([9, 8, 7, 6, 5, 4, 3, 2, 1]), (64, 64), 'more than 8 different widths'),
], ids=str)  # yapf: disable
def test_limits(monkeypatch, grid, size, words):
    monkeypatch.setattr(driver, 'why_not', lambda device: None)
    monkeypatch.setattr(driver, 'shared_limit', lambda device: 101376)
    monkeypatch.setattr(driver, 'has_wgmma', lambda device: False)
    reason = backend.why_not(torch.zeros(1, 1, *size), grid)
    assert reason is None if words is None else re.search(words, reason)


@pytest.mark.parametrize('limit', [232448, 166912, 101376])
def test_plans_of_the_papers_stages_fit(limit):
    """Shared memory of compute capability 9.0, 8.0, and 8.9 or 12.0; what does not fit there is left to Triton."""
    fits = {}
    for (name, size), parts in itertools.product((('k51', 56), ('k49', 28), ('k47', 14), ('k13', 7)), (2, 1)):
        shape = Shape(128, 46, size, size, torch.float32, parts, limit)
        launches = plan.plan_forward(GRIDS[name], shape), plan.plan_theta_grad(GRIDS[name], shape)
        fits[name, parts] = all(launches)
        assert all(launch.shared <= limit for launch in launches if launch)
    assert [key for key, value in fits.items() if not value] == ([] if limit > 110000 else [('k51', 2)])


class TestNvrtc:
    VARIANT = Variant('forward_planes', (('DTYPE', '1'), ('PARTS', '1'), ('KC', '1'), ('HALF', '1')))

    @pytest.fixture(autouse=True)
    def library(self, monkeypatch, tmp_path):
        monkeypatch.setenv('PELK_MM_CACHE', str(tmp_path / 'cache'))
        if isinstance(nvrtc.load_library(), BuildError):
            pytest.skip(str(nvrtc.load_library()))

    def test_compiled_once_and_again_when_damaged(self, monkeypatch, tmp_path):
        code = nvrtc.cubin(self.VARIANT, 'sm_90')
        assert code.startswith(b'\x7fELF')
        assert b'forward_planes' in code
        file, = (tmp_path / 'cache').iterdir()
        times = []
        compile_cubin = nvrtc.compile_cubin
        monkeypatch.setattr(nvrtc, 'compile_cubin', lambda *args: times.append(args) or compile_cubin(*args))
        assert nvrtc.cubin(self.VARIANT, 'sm_90') == code
        assert times == []
        file.write_bytes(file.read_bytes()[:-100])
        assert nvrtc.cubin(self.VARIANT, 'sm_90') == code
        assert len(times) == 1

    def test_errors_are_shown(self):
        with pytest.raises(BuildError, match=r'(?s)forward_planes.cu does not compile for sm_90 .*HALF'):
            nvrtc.cubin(self.VARIANT._replace(macros=self.VARIANT.macros[:3]), 'sm_90')

    @pytest.mark.parametrize('target', [('mma.sync', 'sm_80'), ('wgmma', 'sm_90a')], ids=str)
    def test_the_table_holds_for_the_installed_compiler(self, target):
        """Two rows of resources.json are compiled again: the oldest architecture, and asynchronous products."""
        table = json.loads((nvrtc.SOURCES / 'resources.json').read_text())
        row = next(row for row in table['kernels'] if (row['core'], row['architecture']) == target)
        assert row['kernel'] == 'forward_maps'
        resources = nvrtc.resources(Variant(row['kernel'], tuple(row['macros'].items())), target[1])
        assert resources.spills == 0
        if nvrtc.version() == table['nvrtc']:
            assert resources.registers == row['registers']


def test_the_table_of_resources_is_of_these_sources():
    """Run tools/benchmarks/cuda_resources.py after a change of the kernels: 2 minutes, no GPU."""
    table = json.loads((nvrtc.SOURCES / 'resources.json').read_text())
    assert table['sources'] == nvrtc.source_digest()
    assert {row['architecture'] for row in table['kernels']} == {'sm_80', 'sm_89', 'sm_90a', 'sm_100', 'sm_120'}
    assert {row['core'] for row in table['kernels'] if row['architecture'] == 'sm_90a'} == {'mma.sync', 'wgmma'}
    assert [row for row in table['kernels'] if row['spills']] == []
    for row in table['kernels']:
        threads = int(row['macros'].get('THREADS', 256 if row['kernel'] == 'theta_grad' else 128))
        assert row['registers'] * threads <= 65536


def test_launches_on_pytorchs_stream(monkeypatch, tmp_path):
    """The calls of the driver, on one that only records them."""
    calls = []

    class Driver:

        def __getattr__(self, name):
            return lambda *args: calls.append((name, args)) or 0

    class Properties:
        shared_memory_per_block_optin, multi_processor_count = 232448, 132

    class Stream:
        cuda_stream = 1234

    monkeypatch.setattr(driver, '_driver', Driver)
    monkeypatch.setattr(driver, 'cubin', lambda variant, architecture: calls.append((architecture, variant)) or b'code')
    monkeypatch.setattr(torch.cuda, 'device', lambda index: torch.no_grad())
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda index: Properties)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda index: Stream)
    case = SETS['forward_maps']
    launch = plan.plan_forward(case.grid, Shape(*case.shape, torch.float32, 2, 232448))
    tensor = plan.strided(case.make().x)
    device = torch.device('cuda', 1)
    try:
        # The recorded driver leaves the number of blocks at 0; one a multiprocessor are started then.
        assert driver.resident_blocks(launch, device) == 132
        for _ in range(2):
            driver.launch(launch, (132, 1), (tensor, launch.plan), device)
    finally:
        driver._function.cache_clear()
        driver._resident_blocks.cache_clear()
    assert [name for name, _ in calls] == ['sm_90a', 'cuModuleLoadData', 'cuModuleGetFunction', 'cuFuncSetAttribute',
                                           'cuOccupancyMaxActiveBlocksPerMultiprocessor', *['cuLaunchKernel'] * 2]
    function, *numbers, stream, pointers, extra = calls[-1][1]
    assert numbers == [132, 1, 1, launch.threads, 1, 1, launch.shared]
    assert stream.value == 1234
    assert pointers[1] == plan.ctypes.addressof(launch.plan)
    assert extra is None
