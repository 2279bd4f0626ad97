"""Top singular values of a Jacobian that cannot be formed, and of a Hessian, beside other tools.

A convolutional layer map with 16,384 inputs and outputs, its 20 largest singular values with
residuals below 1e-4 of the largest: beside ARPACK on products by `jvp` and `vjp` (what a user would
write in plain JAX), and on curvlinops' Jacobian operator where curvlinops is installed. And the 5
largest eigenvalues of the Hessian of a small network: beside ARPACK on Hessian-vector products,
and PyHessian.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg as sparse

from dltheory.numerics import krylov

SIDE, CHANNELS, TOP = 32, 16, 20
WIDTHS = (64, 64, 64, 10)


@functools.cache
def layer():
    """Kernels of two convolutions with a tanh between, and one image."""
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(2, 3, 3, CHANNELS, CHANNELS)) / np.sqrt(9 * CHANNELS)
    return kernels.astype(np.float32), rng.normal(size=(SIDE, SIDE, CHANNELS)).astype(np.float32)


def convolved(image):
    kernels, _ = layer()
    for kernel in kernels:
        image = jax.lax.conv_general_dilated(
            jnp.tanh(image)[None],
            jnp.asarray(kernel),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]
    return image


def ours():
    x = jnp.asarray(layer()[1])
    _, tangent = jax.linearize(convolved, x)
    run = jax.jit(lambda key: krylov.top_singular_values(key, tangent, x, TOP, tolerance=1e-4))

    def finish():
        values, residuals = jax.block_until_ready(run(jax.random.key(0)))
        assert (residuals <= 1e-4 * values[0]).all()
        return values

    return finish


def plain_jax():
    x = jnp.asarray(layer()[1])
    push = jax.jit(lambda v: jax.jvp(convolved, (x,), (v.reshape(x.shape),))[1].reshape(-1))
    pull = jax.jit(lambda u: jax.vjp(convolved, x)[1](u.reshape(x.shape))[0].reshape(-1))
    numpy = lambda fn: lambda v: np.asarray(fn(jnp.asarray(v, jnp.float32)))
    operator = sparse.LinearOperator(
        (x.size, x.size), matvec=numpy(push), rmatvec=numpy(pull), dtype=np.float32
    )
    return lambda: sparse.svds(operator, TOP, tol=1e-4, return_singular_vectors=False)[::-1]


def curvlinops():
    torch = pytest.importorskip("torch")
    tool = pytest.importorskip("curvlinops")
    kernels, image = layer()

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.image = torch.nn.Parameter(torch.tensor(np.moveaxis(image, -1, 0)))
            self.kernels = torch.tensor(np.transpose(kernels, (0, 4, 3, 1, 2)))

        def forward(self, _):
            h = self.image[None]
            for kernel in self.kernels:
                h = torch.nn.functional.conv2d(torch.tanh(h), kernel, padding=1)
            return h.reshape(1, -1)

    model, data = Layer(), [(torch.zeros(1, 1), torch.zeros(1, 1))]
    operator = tool.JacobianLinearOperator(
        model, [model.image], data, check_deterministic=False
    ).to_scipy()
    return lambda: sparse.svds(operator, TOP, tol=1e-4, return_singular_vectors=False)[::-1]


@pytest.mark.parametrize("how", [ours, plain_jax, curvlinops])
def test_top_singular_values(benchmark, how):
    benchmark.group = f"top {TOP} singular values of a 16,384 x 16,384 layer map, float32"
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        run = how()
        values = np.asarray(run())
        reference = np.asarray(plain_jax()())
        np.testing.assert_allclose(values, reference, rtol=1e-3)
        benchmark.pedantic(run, rounds=3)


@functools.cache
def regression():
    """Weights of a tanh network, inputs and targets."""
    rng = np.random.default_rng(1)
    sizes = itertools.pairwise(WIDTHS)
    weights = [(rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32) for a, b in sizes]
    x, y = rng.normal(size=(256, WIDTHS[0])), rng.normal(size=(256, WIDTHS[-1]))
    return weights, x.astype(np.float32), y.astype(np.float32)


def loss(weights):
    _, x, y = regression()
    for w in weights[:-1]:
        x = jnp.tanh(x @ w)
    return jnp.mean((x @ weights[-1] - y) ** 2)


def hessian_vector(weights):
    return jax.linearize(jax.grad(loss), weights)[1]


def hessian_ours():
    weights = [jnp.asarray(w) for w in regression()[0]]

    @jax.jit
    def run(key):
        return krylov.top_eigenvalues(key, hessian_vector(weights), weights, 5, tolerance=1e-3)[0]

    return lambda: run(jax.random.key(0)).block_until_ready()


def hessian_plain_jax():
    flat, unravel = jax.flatten_util.ravel_pytree(regression()[0])
    product = jax.jit(lambda v: jax.jvp(jax.grad(lambda w: loss(unravel(w))), (flat,), (v,))[1])
    operator = sparse.LinearOperator(
        (flat.size, flat.size),
        matvec=lambda v: np.asarray(product(jnp.asarray(v, jnp.float32))),
        dtype=np.float32,
    )
    return lambda: sparse.eigsh(operator, 5, tol=1e-3, return_eigenvectors=False)


def hessian_pyhessian():
    torch = pytest.importorskip("torch")
    tool = pytest.importorskip("pyhessian")
    weights, x, y = regression()
    layers = []
    for w in weights:
        linear = torch.nn.Linear(*w.shape, bias=False)
        linear.weight.data = torch.tensor(w.T.copy())
        layers += [linear, torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    data = (torch.tensor(x), torch.tensor(y))

    def run():
        found = tool.hessian(model, torch.nn.MSELoss(), data=data, cuda=False)
        return np.array(found.eigenvalues(maxIter=200, tol=1e-3, top_n=5)[0])

    return run


@pytest.mark.parametrize("how", [hessian_ours, hessian_plain_jax, hessian_pyhessian])
def test_top_hessian_eigenvalues(benchmark, how):
    benchmark.group = "top 5 Hessian eigenvalues, 8,832 parameters, 256 examples, float32"
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        run = how()
        found = np.sort(np.abs(np.asarray(run())))[::-1]
        wanted = np.sort(np.abs(hessian_plain_jax()()))[::-1]
        np.testing.assert_allclose(found, wanted, rtol=2e-2)
        benchmark.pedantic(run, rounds=5)
