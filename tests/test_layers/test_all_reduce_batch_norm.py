"""BatchNorm over several processes equals BatchNorm over their batches together.

Run as a script it is one of the processes.
"""

import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pelk_mm.layers import AllReduceBatchNorm2d
from pelk_mm.testing.processes import run_ranks

# Of seven images, a mean far from zero, so that sums of squares would lose the variance.
SHARES = (2, 5)
ARGUMENTS = (dict(), dict(momentum=None, eps=1e-3), dict(affine=False), dict(track_running_stats=False))


def inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SHARES), 3, 4, 5, generator=generator) + 1000
    return x, torch.randn(x.shape, generator=generator)


def run(kind, arguments, x, grad, steps=2):
    """Outputs, gradients and statistics of two training steps, and the output of evaluation."""
    norm = kind(3, **arguments)
    if norm.affine:
        norm.weight.data.copy_(torch.rand(3, generator=torch.Generator().manual_seed(1)))
    found = []
    for _ in range(steps):
        x = x.detach().requires_grad_()
        y = norm(x)
        y.backward(grad)
        found += [y.detach(), x.grad]
    return found, [weight.grad for weight in norm.parameters()], dict(norm.named_buffers()), norm.eval()(x).detach()


def one_process(rank, folder):
    """As a script."""
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=len(SHARES))
    x, grad = (tensor.split(SHARES)[rank] for tensor in inputs())
    results = [run(AllReduceBatchNorm2d, arguments, x, grad) for arguments in ARGUMENTS]
    half = AllReduceBatchNorm2d(3)(x.bfloat16())
    torch.save(dict(results=results, half=half.detach()), f'{folder}/{rank}.pth')


@pytest.fixture(scope='module')
def processes(tmp_path_factory):
    """The results of each process."""
    folder = tmp_path_factory.mktemp('processes')
    run_ranks(__file__, [(rank, folder) for rank in range(len(SHARES))], folder, modules=('pelk_mm.layers', 'pytest'))
    return [torch.load(folder / f'{rank}.pth') for rank in range(len(SHARES))]


@pytest.mark.parametrize('case', range(len(ARGUMENTS)), ids=map(str, ARGUMENTS))
def test_equals_batch_norm_over_the_complete_batch(processes, case):
    first, second = (process['results'][case] for process in processes)
    steps, weight_grads, buffers, evaluated = run(nn.BatchNorm2d, ARGUMENTS[case], *inputs())
    exact, *_ = run(lambda *args, **kwargs: nn.BatchNorm2d(*args, **kwargs).double(), ARGUMENTS[case],
                    *(tensor.double() for tensor in inputs()))
    for a, b, expected in zip(first[0], second[0], exact):
        # fp32 holds the images themselves to 6e-5 of their deviation.
        torch.testing.assert_close(torch.cat((a, b)), expected.float(), rtol=2e-4, atol=2e-4)
    # DDP sums the gradients of weights, and divides them.
    for a, b, expected in zip(first[1], second[1], weight_grads):
        torch.testing.assert_close(a + b, expected, rtol=1e-3, atol=1e-3)
    assert first[2].keys() == second[2].keys() == buffers.keys()
    for name, expected in buffers.items():
        assert torch.equal(first[2][name], second[2][name])
        torch.testing.assert_close(first[2][name], expected, rtol=1e-5, atol=1e-5)
    if ARGUMENTS[case].get('track_running_stats', True):
        torch.testing.assert_close(torch.cat((first[3], second[3])), evaluated, rtol=1e-3, atol=1e-3)
    else:
        # Without statistics of training, each process evaluates with its own batch, as nn.SyncBatchNorm does.
        assert abs(float(first[3].mean())) < 1e-3


def test_gives_the_dtype_of_the_input(processes):
    assert processes[0]['half'].dtype == torch.bfloat16
    assert processes[0]['half'].isfinite().all()


def test_in_one_process_it_is_batch_norm():
    x, grad = inputs()
    for a, b in zip(run(AllReduceBatchNorm2d, {}, x, grad)[0], run(nn.BatchNorm2d, {}, x, grad)[0]):
        assert torch.equal(a, b)
    assert isinstance(AllReduceBatchNorm2d(3), nn.BatchNorm2d)


if __name__ == '__main__':
    one_process(int(sys.argv[1]), sys.argv[2])
