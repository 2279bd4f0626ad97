"""Batch normalisation in batches of finite size: closed forms, and draws from the sphere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.networks import activations
from dltheory.theory import batch_norm, dual, mean_field
from tests.tier import FULL, cases

_BATCH = 8
# An activation that is homogeneous, a smooth one and one with kinks away from zero.
_LIVE = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: 1.0 * (z > 0)),
    "tanh": (np.tanh, lambda z: np.cosh(z) ** -2),
    "hard_tanh": (lambda z: np.clip(z, -1, 1), lambda z: 1.0 * (np.abs(z) < 1)),
}


def relu_kernels(batch):
    """Means of relu and of its slope at two examples, in closed form."""
    c = -1 / (batch - 1)
    return [float(k("relu", 1.0, 1.0, c)) for k in (dual.kernel, dual.derivative_kernel)]


@pytest.mark.parametrize("batch", [4, 5, 8, 64, 1000][:: 1 if FULL else 2])
def test_closed_forms(batch):
    """Of the identity; and of relu, whose averages are those of Gaussian variables."""
    b = batch
    linear = mean_field.batch_norm_growth("identity", batch=b)
    np.testing.assert_allclose(linear, (b - 2) / (b - 3), rtol=1e-12)
    np.testing.assert_allclose(batch_norm.stability("identity", b), (b - 1) / (b + 1), rtol=1e-12)
    k1, k0 = (2 * k for k in relu_kernels(b))
    wanted = ((b - 1 + k0) / (1 - k1) - 1) / (b - 3)
    np.testing.assert_allclose(mean_field.batch_norm_growth("relu", batch=b), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", _LIVE)
def test_one_layer_of_random_channels(name):
    """Variances and squared gradients of channels drawn at random, within four standard errors."""
    value, slope = _LIVE[name]
    rng, b, n = np.random.default_rng(1), _BATCH, cases(4_000_000)
    centred = lambda a: a - a.mean(1, keepdims=True)
    h, delta = centred(rng.normal(size=(n, b))), centred(rng.normal(size=(n, b)))
    std = h.std(1, keepdims=True)
    z = h / std
    back = slope(z) * delta
    back = (centred(back) - z * (back * z).mean(1, keepdims=True)) / std
    found = batch_norm.rates(name, b)
    variances = (centred(value(z)) ** 2).sum(1) / (b - 1)
    growths = (back**2).sum(1) / (b - 1)
    for sample, wanted in ((variances, found.variance), (growths, found.alone + found.together)):
        assert abs(sample.mean() - wanted) < 4 * sample.std() / n**0.5


@pytest.mark.parametrize("name", [*_LIVE][: 3 if FULL else 2])
def test_small_differences_decay_as_stability_says(name):
    """The covariance after a layer, when that before it is moved both ways."""
    value, _ = _LIVE[name]
    rng, b, n, step = np.random.default_rng(2), _BATCH, cases(500_000), 0.1
    flat = np.eye(b) - 1 / b
    d, e = np.eye(b)[0] - np.eye(b)[1], np.eye(b)[2] - np.eye(b)[3]
    normal = rng.normal(size=(n, b)) @ flat
    found = batch_norm.stability(name, b)
    variance = float(batch_norm.rates(name, b).variance)
    for moved, wanted in zip(
        (flat @ np.diag(d) @ flat, np.outer(d, e) + np.outer(e, d)), found, strict=True
    ):
        samples = []
        for sign in (-1, 1):
            roots, vectors = np.linalg.eigh(flat + sign * step * moved)
            h = normal @ (vectors * np.sqrt(np.maximum(roots, 0))) @ vectors.T
            z = (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
            samples.append(np.einsum("na,ab,nb->n", value(z), moved, value(z)))
        slope = (samples[1] - samples[0]) / (2 * step * variance * np.sum(moved**2))
        assert abs(slope.mean() - wanted) < 4 * slope.std() / n**0.5 + step**2


@pytest.mark.parametrize("name", ["tanh", *["hard_tanh", "elu"] * FULL])
def test_large_batches_approach_the_limit(name):
    """With an error of first order in 1 / B."""
    limit = float(mean_field.batch_norm_growth(name))
    errors = [float(mean_field.batch_norm_growth(name, batch=b)) - limit for b in (200, 400)]
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.02)


def test_differentiable_in_the_activation():
    phi = activations.get("tanh")

    def growth(steepness):
        scaled = activations.Activation(
            **{**vars(phi), "name": "steep", "fn": lambda z: jnp.tanh(steepness * z)}
        )
        return mean_field.batch_norm_growth(scaled, batch=_BATCH)

    slope, step = jax.grad(growth)(1.0), 1e-5
    wanted = (growth(1 + step) - growth(1 - step)) / (2 * step)
    np.testing.assert_allclose(slope, wanted, rtol=1e-8)


def test_residual_growth_of_relu():
    """The recursion of both covariances of the gradient, by hand."""
    blocks, batch, weight_var = 6, 32, 2.0
    k1, k0 = relu_kernels(batch)
    a, b, wanted = 1.0, 0.0, []
    for below in reversed(range(blocks)):
        added = a * (batch - 2) / 2 - b * (batch - 1) * (k0 + k1)
        added *= weight_var / ((batch - 3) * (1 + below * weight_var * (0.5 - k1)))
        wanted.append(1 + added / a)
        a, b = a + added, b - added / (batch - 1)
    at = {"blocks": blocks, "weight_var": weight_var}
    found = batch_norm.residual_batch_norm_growth("relu", batch=batch, **at)
    np.testing.assert_allclose(found, wanted[::-1], rtol=1e-12)
    limit = batch_norm.residual_batch_norm_growth("relu", **at)
    share = (0.5 - 0.5 / np.pi) * np.arange(blocks)
    np.testing.assert_allclose(limit, 1 + 1 / (1 + 2 * share), rtol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match="batch must be above 3, where the mean gradient is"):
        batch_norm.rates("tanh", 3)
    with pytest.raises(ValueError, match=r"and a whole number; got 4\.5"):
        mean_field.batch_norm_growth("tanh", batch=4.5)
    text = "batches of 64 behind gelu leave the state that treats all examples alike"
    with pytest.raises(ValueError, match=text):
        mean_field.batch_norm_growth("gelu", batch=64)
    with pytest.raises(ValueError, match="blocks is 0; want a positive integer"):
        batch_norm.residual_batch_norm_growth("relu", blocks=0, weight_var=1.0)
    with pytest.raises(ValueError, match="weight_var must be zero or more; got -1"):
        batch_norm.residual_batch_norm_growth("relu", blocks=1, weight_var=-1.0)
