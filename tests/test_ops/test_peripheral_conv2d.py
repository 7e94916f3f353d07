"""The interface and the backends that need no device: every one against the reference in fp64, on one case list."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops.peripheral_conv2d import box_sums, costs, native, reference
from pelk_mm.ops.peripheral_conv2d.backends import BACKENDS, Backend, select_backend
from pelk_mm.ops.peripheral_conv2d.native_build import BuildError
from pelk_mm.ops.peripheral_conv2d.operations import executed_operations
from pelk_mm.testing.cases import CASES, GRIDS, POISON_CASES, PRECISION_CASES, Case, expected, poison, run
from pelk_mm.testing.tolerances import assert_close, relative_error

FAST = [name for name in BACKENDS if name not in ('reference', 'triton', 'cuda')]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def by_id(case):
    return case.id


def test_reference_against_loops():
    grid = SharingGrid.from_half([2, 1, 1])
    x, theta, bias = torch.randn(1, 2, 4, 5).double(), torch.randn(2, 5, 5).double(), torch.randn(2).double()
    out = peripheral_conv2d(x, theta, grid, bias, backend='reference')
    cell = [0, 0, 1, 2, 3, 4, 4]
    for c, y, z in itertools.product(range(2), range(4), range(5)):
        total = bias[c].item()
        for i, j in itertools.product(range(7), range(7)):
            row, column = y + i - 3, z + j - 3
            if 0 <= row < 4 and 0 <= column < 5:
                total += theta[c, cell[i], cell[j]].item() * x[0, c, row, column].item()
        assert abs(out[0, c, y, z].item() - total) < 1e-12


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('case', CASES, ids=by_id)
def test_output_and_gradients(case, backend):
    for dtype in DTYPES:
        inputs = case.make(dtype)
        for name, actual, right in zip(('output', 'x', 'theta', 'bias'), run(inputs, case.grid, backend),
                                       expected(inputs, case.grid)):
            # A sum over all pixels may exceed what fp16 can hold; then inf is the right answer.
            right = right.where(right.abs() <= torch.finfo(dtype).max, torch.inf * right.sign())
            overflow = right.isinf()
            assert torch.equal(actual[overflow].double(), right[overflow])
            assert_close(actual.where(~overflow, 0), right.where(~overflow, 0), f'{name} in {dtype}')


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('case', PRECISION_CASES, ids=by_id)
def test_fp32_error_bound(case, backend):
    inputs = case.make()
    # A dense fp64 convolution of the largest maps takes minutes; the box backend in fp64 is itself tested above.
    right = run(type(inputs)(*(tensor.double() for tensor in inputs)), case.grid, 'box_sums')
    for name, actual, value in zip(('output', 'x', 'theta', 'bias'), run(inputs, case.grid, backend), right):
        assert_close(actual, value, name)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_dense(backend, dtype):
    case = Case('half', (2, 3, 29, 31), GRIDS['k51'], mean=1.0)
    inputs, right = case.make(dtype), expected(case.make(dtype), case.grid)
    for actual, dense, value in zip(run(inputs, case.grid, backend), run(inputs, case.grid, 'reference'), right):
        assert relative_error(actual, value) <= 1.05 * relative_error(dense, value)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('case', POISON_CASES, ids=by_id)
def test_nan_stays_in_its_plane_and_window(case, value, backend):
    inputs, others = poison(case.make(), value)
    output, grad_x, grad_theta, _ = run(inputs, case.grid, backend)
    dense = run(inputs, case.grid, 'reference')
    assert output[others].isfinite().all()
    assert grad_x.isfinite().all()
    # Within the plane exactly the outputs whose window holds the value are spoiled, as in the dense convolution.
    assert torch.equal(output.isfinite(), dense.output.isfinite())
    channels = others.all(0)
    assert grad_theta[channels].isfinite().all()
    assert not grad_theta[~channels].isfinite().all()


@pytest.mark.parametrize('backend', [*FAST, 'reference'])
def test_gradcheck_once_and_twice(backend):
    grid = SharingGrid.from_half([3, 2, 1, 1])
    x = torch.randn(2, 2, 5, 4, dtype=torch.double, requires_grad=True)
    theta = torch.randn(2, 7, 7, dtype=torch.double, requires_grad=True)
    bias = torch.randn(2, dtype=torch.double, requires_grad=True)

    def call(*tensors):
        return peripheral_conv2d(tensors[0], tensors[1], grid, tensors[2], backend=backend)

    assert torch.autograd.gradcheck(call, (x, theta, bias))
    assert torch.autograd.gradgradcheck(call, (x, theta, bias), fast_mode=True)


@pytest.mark.parametrize('backend', [*FAST, 'auto'])
def test_custom_op_contract(backend):
    case = Case('contract', (2, 3, 7, 6), GRIDS['k13'], 'channels_last')
    x, theta, bias, grad = case.make()
    half = list(case.grid.half)
    for tensors in ((x, theta, bias), (x.requires_grad_(), theta.requires_grad_(), None)):
        torch.library.opcheck(torch.ops.pelk_mm.peripheral_conv2d.default, (*tensors, half, backend))
    torch.library.opcheck(torch.ops.pelk_mm.peripheral_conv2d_theta_grad.default, (x.detach(), grad, half, backend))


def test_autocast_as_conv2d():
    x, theta, bias, _ = Case('autocast', (1, 3, 9, 9), GRIDS['k13']).make()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = peripheral_conv2d(x, theta, GRIDS['k13'], bias)
        dense = F.conv2d(x, torch.randn(3, 1, 5, 5), bias, padding=2, groups=3)
        assert out.dtype == dense.dtype == torch.bfloat16
        assert peripheral_conv2d(x.double(), theta.double(), GRIDS['k13']).dtype == torch.float64


def test_result_does_not_depend_on_threads():
    inputs = Case('threads', (5, 7, 33, 31), GRIDS['k31'], 'channels_last').make()
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(run(inputs, GRIDS['k31'], 'native'))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result[:3], results[0][:3]))


def test_backends_explain_themselves(monkeypatch):
    x, theta, _, _ = Case('names', (1, 2, 5, 5), GRIDS['k3']).make()
    reasons = available_backends(x, theta, GRIDS['k3'])
    assert list(reasons) == list(BACKENDS)
    assert list(reasons)[-1] == 'reference'
    assert [reasons[name] for name in ('native', 'box_sums', 'reference')] == [None, None, None]
    assert 'meta' in available_backends(x.to('meta'), theta.to('meta'), GRIDS['k3'])['native']
    with pytest.raises(ValueError, match="backend must be .*'nativ'"):
        peripheral_conv2d(x, theta, GRIDS['k3'], backend='nativ')
    monkeypatch.setenv('PELK_MM_BACKEND', 'nothing')
    with pytest.raises(ValueError, match='nothing'):
        peripheral_conv2d(x, theta, GRIDS['k3'])


@pytest.fixture
def toy():
    """A backend registered as CONTRIBUTING.md says, first in the table, and the calls it gets."""
    calls, others = [], dict(BACKENDS)

    def forward(x, theta, bias, grid):
        calls.append('forward')
        return reference.forward(x, theta, bias, grid)

    def theta_grad(x, grad_output, grid):
        calls.append('theta_grad')
        return reference.theta_grad(x, grad_output, grid)

    def why_not(x, grid):
        return 'the grid is shared' if grid == GRIDS['k51'] else None

    BACKENDS.clear()
    BACKENDS.update(toy=Backend('toy', why_not, forward, theta_grad), **others)
    yield calls
    BACKENDS.clear()
    BACKENDS.update(others)


def test_a_new_backend_is_one_entry_of_the_table(toy, caplog, monkeypatch):
    case = Case('toy', (2, 3, 9, 9), GRIDS['k13'])
    inputs = case.make()
    x, theta = inputs[:2]
    assert next(iter(available_backends(x, theta, case.grid).items())) == ('toy', None)
    for actual, right in zip(run(inputs, case.grid, 'toy'), expected(inputs, case.grid)):
        assert_close(actual, right)
    assert toy == ['forward', 'forward', 'theta_grad']
    with pytest.raises(RuntimeError, match="'toy' .*cannot run here: the grid is shared"):
        run(inputs._replace(theta=torch.zeros(3, 13, 13)), GRIDS['k51'], 'toy')
    # Without measured costs the automatic choice of a CPU leaves it out, with a log entry; elsewhere the order counts.
    costs._cheapest.cache_clear()
    with caplog.at_level('DEBUG'):
        run(inputs, case.grid, 'auto')
    assert len(toy) == 3
    assert "'toy' is not used: it has no row in CPU_COSTS" in caplog.text
    assert select_backend('auto', 'forward', x.to('meta'), case.grid).name == 'toy'
    # With costs of the forward pass only it is chosen for that.
    monkeypatch.setitem(costs.CPU_COSTS, ('toy', 'forward', 'planes'), (1.0, 0.0, 0.0, 0.0, 0.0))
    costs._cheapest.cache_clear()
    run(inputs, case.grid, 'auto')
    costs._cheapest.cache_clear()
    assert toy[3:] == ['forward', 'forward']
    with pytest.raises(ValueError, match="whose operations are counted, got 'toy'"):
        executed_operations('toy', x, case.grid)


def test_the_earlier_name_of_box_sums_is_accepted(monkeypatch):
    x, theta, bias, _ = Case('alias', (1, 2, 9, 9), GRIDS['k51']).make()
    called = []
    monkeypatch.setitem(BACKENDS, 'box_sums', replace(
        BACKENDS['box_sums'], forward=lambda *args: called.append(args) or box_sums.forward(*args)))
    right = peripheral_conv2d(x, theta, GRIDS['k51'], bias, backend='box_sums')
    half = list(GRIDS['k51'].half)
    outputs = [
        peripheral_conv2d(x, theta, GRIDS['k51'], bias, backend='boxes'),
        # As programs that were exported with it call it.
        torch.ops.pelk_mm.peripheral_conv2d(x, theta, bias, half, 'boxes'),
    ]
    monkeypatch.setenv('PELK_MM_BACKEND', 'boxes')
    outputs.append(peripheral_conv2d(x, theta, GRIDS['k51'], bias))
    assert len(called) == 4
    assert all(torch.equal(output, right) for output in outputs)
    assert executed_operations('boxes', x, GRIDS['k51']) == executed_operations('box_sums', x, GRIDS['k51'])
    assert 'boxes' not in available_backends(x, theta, GRIDS['k51'])


def test_impossible_backend_raises_its_reason(monkeypatch):
    x, theta, _, _ = Case('impossible', (1, 2, 5, 5), GRIDS['k3']).make()
    monkeypatch.setattr(native, 'load_library', lambda double: BuildError('no compiler'))
    with pytest.raises(RuntimeError, match="'native'.*no compiler"):
        peripheral_conv2d(x, theta, GRIDS['k3'], backend='native')
    right = peripheral_conv2d(x, theta, GRIDS['k3'], backend='reference')
    torch.testing.assert_close(peripheral_conv2d(x, theta, GRIDS['k3']), right)


@pytest.mark.parametrize('change, error, words', [
    (dict(x=torch.zeros(2, 5, 5)), ValueError, ('x', '(N, C, H, W)', '(2, 5, 5)')),
    (dict(theta=torch.zeros(2, 5, 5)), ValueError, ('theta', '(C, 3, 3)', '(2, 5, 5)')),
    (dict(theta=torch.zeros(3, 3, 3)), ValueError, ('theta', '2 channels', '3')),
    (dict(bias=torch.zeros(3)), ValueError, ('bias', '(2,)', '(3,)')),
    (dict(theta=torch.zeros(2, 3, 3).double()), TypeError, ('theta', 'float32', 'float64')),
    (dict(x=torch.zeros(1, 2, 5, 5).int(), theta=torch.zeros(2, 3, 3).int()), TypeError, ('x', 'int32')),
    (dict(theta=torch.zeros(2, 3, 3, device='meta')), ValueError, ('theta', 'cpu', 'meta')),
    (dict(grid=[2, 1]), TypeError, ('grid', 'SharingGrid', 'list')),
])
def test_wrong_input_says_what_is_wrong(change, error, words):
    grid = SharingGrid.from_half([2, 1])
    arguments = dict(x=torch.zeros(1, 2, 5, 5), theta=torch.zeros(2, 3, 3), grid=grid, bias=None)
    arguments.update(change)
    with pytest.raises(error) as info:
        peripheral_conv2d(**arguments)
    assert all(word in str(info.value) for word in words), str(info.value)
