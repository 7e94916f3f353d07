"""Derivatives of every kind, eager and compiled: the operators against the dense convolution in fp64."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from pelk_mm.layers import PeripheralConv2d
from pelk_mm.models import PeLK
from pelk_mm.ops import SharingGrid, expand_kernel, peripheral_conv2d

GRID = SharingGrid.from_half([2, 1, 1])
BACKENDS = ['native', 'box_sums', 'reference', 'auto']


def tensors(*batch):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*batch, *shape, dtype=torch.double, generator=generator)
            for shape in ((2, 2, 5, 4), (2, 5, 5), (2, ))]


INPUTS, TANGENTS, BATCHES = tensors(), [tensor.flip(0) + 0.3 for tensor in tensors()], tensors(3)
ALL = (0, 1, 2)


def dense(x, theta, bias):
    kernel = expand_kernel(theta, GRID).unsqueeze(1)
    return F.conv2d(x, kernel, bias, padding=GRID.kernel_size // 2, groups=x.shape[1])


def loss_of(function):
    return lambda x, theta, bias: function(x, theta, bias).sin().square().sum()


def loss_of_one(function):
    return lambda x, theta, bias: loss_of(function)(x[None], theta, bias)


def dual_numbers(function):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(primal, tangent) for primal, tangent in zip(INPUTS, TANGENTS)]
        return forward_ad.unpack_dual(function(*duals)).tangent


def reverse_over_forward(function):
    inputs = [tensor.clone().requires_grad_() for tensor in INPUTS]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(primal, tangent) for primal, tangent in zip(inputs, TANGENTS)]
        return torch.autograd.grad(forward_ad.unpack_dual(loss_of(function)(*duals)).tangent, inputs)


def without_grad(function):
    with torch.no_grad():
        return jvp(function, tuple(INPUTS), tuple(TANGENTS))


TRANSFORMS = dict(
    jvp=lambda f: jvp(f, tuple(INPUTS), tuple(TANGENTS)),
    jvp_of_x=lambda f: jvp(lambda x: f(x, *INPUTS[1:]), (INPUTS[0], ), (TANGENTS[0], )),
    jvp_of_theta=lambda f: jvp(lambda theta: f(INPUTS[0], theta, None), (INPUTS[1], ), (TANGENTS[1], )),
    jvp_of_bias=lambda f: jvp(lambda bias: f(*INPUTS[:2], bias), (INPUTS[2], ), (TANGENTS[2], )),
    jvp_without_grad=without_grad,
    dual_numbers=dual_numbers,
    reverse_over_dual_numbers=reverse_over_forward,
    grad=lambda f: grad(loss_of(f), ALL)(*INPUTS),
    vjp=lambda f: vjp(f, *INPUTS)[1](INPUTS[0].cos()),
    jacrev=lambda f: jacrev(f, ALL)(*INPUTS),
    jacfwd=lambda f: jacfwd(f, ALL)(*INPUTS),
    hessian=lambda f: hessian(loss_of(f), ALL)(*INPUTS),
    reverse_twice=lambda f: jacrev(jacrev(loss_of(f), 1), 0)(*INPUTS),
    forward_twice=lambda f: jacfwd(jacfwd(loss_of(f), 1), 0)(*INPUTS),
    reverse_over_forward=lambda f: jacrev(jacfwd(loss_of(f), 1), 1)(*INPUTS),
    three_times=lambda f: grad(lambda t: grad(lambda t: grad(loss_of(f), 1)(INPUTS[0], t, None).square().sum())
                               (t).square().sum())(INPUTS[1]),
    per_sample=lambda f: vmap(grad(loss_of_one(f), ALL), (0, None, None))(*INPUTS),
    per_sample_hessian=lambda f: vmap(hessian(loss_of_one(f), 1), (0, None, None))(*INPUTS),
    batch_of_x=lambda f: vmap(f, (0, None, None))(BATCHES[0], *INPUTS[1:]),
    batch_of_no_images=lambda f: vmap(f, (0, None, None))(BATCHES[0][:, :0], *INPUTS[1:]),
    batch_of_theta=lambda f: vmap(f, (None, 0, None))(INPUTS[0], BATCHES[1], INPUTS[2]),
    batch_of_bias=lambda f: vmap(f, (None, None, 0))(*INPUTS[:2], BATCHES[2]),
    batch_of_last_dimensions=lambda f: vmap(f, (4, 2, 1), 4)(
        BATCHES[0].movedim(0, 4), BATCHES[1].movedim(0, 2), BATCHES[2].movedim(0, 1)),
    batches_of_batches=lambda f: vmap(vmap(f, (0, None, 0)), (None, 0, None))(*BATCHES),
    ensemble=lambda f: vmap(grad(loss_of(f), 1), (None, 0, 0))(INPUTS[0], *BATCHES[1:]),
    batched_backward=lambda f: torch.autograd.functional.jacobian(f, tuple(INPUTS), vectorize=True),
)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', TRANSFORMS)
def test_as_the_dense_convolution(name, backend):

    def own(x, theta, bias):
        return peripheral_conv2d(x, theta, GRID, bias, backend=backend)

    with warnings.catch_warnings():
        # PyTorch's warning that a batch is a loop, which it is before register_vmap came with PyTorch 2.5.
        if hasattr(torch.library, 'register_vmap'):
            warnings.filterwarnings('error', 'There is a performance drop')
        torch.testing.assert_close(TRANSFORMS[name](own), TRANSFORMS[name](dense))


@pytest.mark.parametrize('name', ['jvp', 'per_sample', 'hessian'])
def test_compiled_transforms(name):
    torch._dynamo.reset()
    compiled = dict(
        jvp=lambda f: lambda *inputs: jvp(f, inputs, tuple(TANGENTS)),
        per_sample=lambda f: vmap(grad(loss_of_one(f), ALL), (0, None, None)),
        hessian=lambda f: hessian(loss_of(f), 1))[name]
    own = torch.compile(compiled(lambda x, theta, bias: peripheral_conv2d(x, theta, GRID, bias)), backend='aot_eager',
                        fullgraph=True)
    torch.testing.assert_close(own(*INPUTS), compiled(dense)(*INPUTS))


@pytest.mark.parametrize('backend', ['native', 'box_sums', 'auto'])
def test_gradcheck_in_forward_mode_and_batched(backend):
    inputs = [tensor.clone().requires_grad_() for tensor in INPUTS]

    def own(x, theta, bias):
        return peripheral_conv2d(x, theta, GRID, bias, backend=backend)

    assert torch.autograd.gradcheck(own, inputs, check_forward_ad=True, check_batched_grad=True,
                                    check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(own, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_tangents_under_autocast_are_of_its_dtype(dtype):
    inputs, tangents = (tuple(tensor.float() for tensor in values) for values in (INPUTS, TANGENTS))
    with torch.autocast('cpu', dtype=dtype):
        _, tangent = jvp(lambda *args: peripheral_conv2d(*args[:2], GRID, args[2]), inputs, tangents)
    assert tangent.dtype == dtype
    right = jvp(dense, tuple(INPUTS), tuple(TANGENTS))[1]
    torch.testing.assert_close(tangent.double(), right, rtol=0.02, atol=0.1)


def test_per_sample_gradients_of_a_layer_sum_to_those_of_the_batch():
    layer = PeripheralConv2d(2, 13).double()
    x = INPUTS[0]
    parameters = dict(layer.named_parameters())

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample[None], )).cos().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x)
    layer(x).cos().sum().backward()
    for name, parameter in parameters.items():
        assert each[name].shape == (len(x), *parameter.shape)
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


def test_tangent_of_a_network_is_its_difference_quotient():
    """Through the positional embedding, norms and pointwise layers as well."""
    torch.manual_seed(0)
    arch = dict(depths=(1, 2), channels=(4, 8), kernel_sizes=(13, 9))
    net = PeLK(arch, layer_scale_init_value=1.0).double().eval()
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    tangents = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    image = torch.randn(1, 3, 32, 32, dtype=torch.double)

    def features(parameters):
        return functional_call(net, parameters, (image, ))[0]

    _, tangent = jvp(features, (parameters, ), (tangents, ))
    step = 1e-6
    ahead, behind = (features({name: parameters[name] + sign * step * tangents[name] for name in parameters})
                     for sign in (1, -1))
    assert tangent.abs().max() > 1e-3
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


def test_a_user_without_a_name_can_call_it():
    """A container's uid need not be in /etc/passwd; some versions of PyTorch's compiler cannot be imported then."""
    script = '''
import pwd
def nobody(uid):
    raise KeyError(f'getpwuid(): uid not found: {uid}')
pwd.getpwuid = nobody
import sys, torch
from pelk_mm.ops import SharingGrid, peripheral_conv2d
x, theta = torch.randn(1, 2, 9, 9, requires_grad=True), torch.randn(2, 9, 9, requires_grad=True)
grid = SharingGrid.from_kernel_size(13)
out = [peripheral_conv2d(x, theta, grid, backend=name) for name in ('box_sums', 'reference')]
for y in out:
    y.square().sum().backward()
torch.testing.assert_close(*out)
print('torch._dynamo' in sys.modules)
'''
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('LOGNAME', 'USER', 'LNAME', 'USERNAME', 'HOME', 'TORCHINDUCTOR_CACHE_DIR')}
    result = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == 'False', 'the compiler was imported for a call that does not compile'
