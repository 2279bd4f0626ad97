"""Empirical tangent kernels beside full Jacobians.

A fully connected network with 0.57 million parameters on 48 inputs, and a small convolutional one
on 64 images, each with 10 outputs: beside the recipe of PyTorch's documentation (`torch.func`:
the Jacobian of each sample by `jacrev` under `vmap`, then a contraction), and beside two explicit
routes in plain JAX: `jacrev` under `vmap`, and the gradients of one output after another.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import ntk

OUTPUTS = 10
MLP_WIDTHS, MLP_INPUTS = (784, 512, 256, 128, OUTPUTS), 48
CHANNELS, SIDE, IMAGES = (1, 16, 32, 32), 16, 64


@functools.cache
def problem(kind):
    """Weights and inputs: dense layers, or filters followed by one dense layer."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    if kind == "mlp":
        params = [
            (normal(a, b) / np.float32(a**0.5), normal(b))
            for a, b in itertools.pairwise(MLP_WIDTHS)
        ]
        return params, normal(MLP_INPUTS, MLP_WIDTHS[0])
    params = [
        (normal(3, 3, a, b) / np.float32((9 * a) ** 0.5), normal(b))
        for a, b in itertools.pairwise(CHANNELS)
    ]
    features = CHANNELS[-1] * (SIDE // 8) ** 2
    params.append((normal(features, OUTPUTS) / np.float32(features**0.5), normal(OUTPUTS)))
    return params, normal(IMAGES, SIDE, SIDE, CHANNELS[0])


def mlp(params, x):
    for W, b in params[:-1]:
        x = jnp.tanh(x @ W + b)
    W, b = params[-1]
    return x @ W + b


def cnn(params, x):
    """Three convolutions, each followed by tanh and the mean of 2 x 2 positions."""
    for K, b in params[:-1]:
        x = jax.lax.conv_general_dilated(
            x, K, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        n, height, width, channels = x.shape
        x = jnp.tanh(x + b).reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    W, b = params[-1]
    return x.reshape(x.shape[0], -1) @ W + b


MODELS = {"mlp": mlp, "cnn": cnn}


def compiled(kind, kernel):
    params, x = jax.tree.map(jnp.asarray, problem(kind))
    run = jax.jit(functools.partial(kernel, MODELS[kind]))
    return lambda: jax.block_until_ready(run(params, x))


def contracted(jacobian):
    """Jacobians, a pytree of `(N, O, ...)`, to the kernel."""
    rows = [a.reshape(*a.shape[:2], -1) for a in jax.tree.leaves(jacobian)]
    return sum(jnp.einsum("nok,mpk->nmop", a, a) for a in rows)


def ours(kind):
    return compiled(kind, ntk.empirical_ntk)


def plain_jax(kind):
    def kernel(f, params, x):
        one = lambda p, example: f(p, example[None])[0]
        return contracted(jax.vmap(jax.jacrev(one), (None, 0))(params, x))

    return compiled(kind, kernel)


def plain_jax_passes(kind):
    """One reverse pass of the batch for each output, its gradients per example by `vmap`."""

    def kernel(f, params, x):
        def gradients(output):
            one = lambda p, example: f(p, example[None])[0, output]
            return jax.vmap(jax.grad(one), (None, 0))(params, x)

        jacobian = jax.lax.map(gradients, jnp.arange(OUTPUTS))
        return contracted(jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), jacobian))

    return compiled(kind, kernel)


def torch_func(kind):
    torch = pytest.importorskip("torch")
    params, x = problem(kind)
    layers = []
    for W, b in params:
        if W.ndim == 4:
            layer = torch.nn.Conv2d(W.shape[2], W.shape[3], 3, padding=1)
            layer.weight.data = torch.tensor(np.transpose(W, (3, 2, 0, 1)).copy())
            layers += [layer, torch.nn.Tanh(), torch.nn.AvgPool2d(2)]
        else:
            layer = torch.nn.Linear(*W.shape)
            layer.weight.data = torch.tensor(W.T.copy())
            layers += [layer, torch.nn.Tanh()]
        layer.bias.data = torch.tensor(b)
    layers = layers[:-1]
    if kind == "cnn":  # the dense layer reads channels last, as in JAX
        layers.insert(-1, torch.nn.Flatten())
        W = params[-1][0].reshape(SIDE // 8, SIDE // 8, CHANNELS[-1], OUTPUTS)
        W = np.transpose(W, (2, 0, 1, 3)).reshape(-1, OUTPUTS)
        layers[-1].weight.data = torch.tensor(W.T.copy())
        x = np.moveaxis(x, -1, 1).copy()
    model = torch.nn.Sequential(*layers)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    inputs = torch.tensor(x)

    def one(weights, example):
        return torch.func.functional_call(model, weights, (example[None],))[0]

    def run():
        jacobian = torch.func.vmap(torch.func.jacrev(one), (None, 0))(weights, inputs)
        rows = [a.flatten(2) for a in jacobian.values()]
        return sum(torch.einsum("Naf,Mbf->NMab", a, a) for a in rows).numpy()

    return run


def check(benchmark, kind, how, rounds):
    allow = jax.numpy_rank_promotion("allow")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), allow:
        run = how(kind)
        measured, wanted = np.asarray(run()), np.asarray(plain_jax(kind)())
        scale = np.max(np.abs(wanted))
        np.testing.assert_allclose(measured / scale, wanted / scale, rtol=0, atol=1e-5)
        benchmark.pedantic(run, rounds=rounds)


@pytest.mark.parametrize("how", [ours, plain_jax, plain_jax_passes, torch_func])
def test_mlp(benchmark, how):
    benchmark.group = "tangent kernel of an MLP, 0.57M parameters, 48 inputs, 10 outputs, float32"
    check(benchmark, "mlp", how, rounds=20 if how is ours else 3)


@pytest.mark.parametrize("how", [ours, plain_jax, plain_jax_passes, torch_func])
def test_cnn(benchmark, how):
    benchmark.group = "tangent kernel of a CNN, 15k parameters, 64 images, 10 outputs, float32"
    check(benchmark, "cnn", how, rounds=5)
