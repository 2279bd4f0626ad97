"""Fluctuations at finite width against networks drawn by their exact law, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.experiment.claims import infinite_width
from dltheory.theory import finite_width, fluctuations, mean_field
from tests.tier import FULL, cases

DEPTH, Q0, C0 = 3, 1.3, 0.4
ACTIVATIONS = {
    "tanh": (np.tanh, lambda h: 1 / np.cosh(h) ** 2),
    "relu": (lambda h: np.maximum(h, 0), lambda h: np.where(h > 0, 1.0, 0.0)),
}
LAWS = [("tanh", "orthogonal"), ("relu", "gaussian"), ("tanh", "gaussian"), ("relu", "orthogonal")]


def networks(name, ensemble, width, *, seeds, weight_var, bias_var):
    """Lengths, correlations and chi_1 of random networks at two inputs, `(3, depth, seeds)`.

    Given the layer before, what the weights make of two inputs is a pair of Gaussian vectors, or
    one with exactly their Gram matrix: no weight need be drawn.
    """
    rng = np.random.default_rng(0)
    phi, slope = ACTIVATIONS[name]
    gram = np.broadcast_to(np.where(np.eye(2), Q0, C0 * Q0) - bias_var, (seeds, 2, 2))
    found = []
    for _ in range(DEPTH):
        z = rng.standard_normal((seeds, width, 2))
        if ensemble == "orthogonal":
            root = np.linalg.cholesky(z.swapaxes(1, 2) @ z / width)
            z = z @ np.linalg.inv(root).swapaxes(1, 2)
        h = z @ np.linalg.cholesky(gram).swapaxes(1, 2)
        h += np.sqrt(bias_var) * rng.standard_normal((seeds, width, 1))
        (qa, cov), (_, qb) = np.moveaxis(h.swapaxes(1, 2) @ h / width, 0, -1)
        columns = rng.chisquare(width, (seeds, width)) / width if ensemble == "gaussian" else 1.0
        chi_1 = weight_var * np.mean(slope(h[..., 0]) ** 2 * columns, axis=1)
        found.append((qa, cov / np.sqrt(qa * qb), chi_1))
        gram = weight_var * phi(h).swapaxes(1, 2) @ phi(h) / width
    return np.swapaxes(found, 0, 1)


@pytest.mark.parametrize(("name", "ensemble"), LAWS[: max(2, cases(len(LAWS)))])
def test_random_networks_have_this_bias_and_these_fluctuations(name, ensemble):
    """Times the width, and with it to infinity: within four standard errors."""
    at = {"weight_var": 1.7, "bias_var": 0.1}
    size = {"depth": DEPTH, "width": 10**6, "ensemble": ensemble, **at}
    pair = name == "tanh" or FULL  # compiled once in the quick tier
    mean = mean_field.propagate(name, Q0, C0, depth=DEPTH, **at)
    bias, std = jax.jit(lambda q: fluctuations.lengths(name, q, **size))(Q0)
    seeds = cases(40_000)
    draws = {n: networks(name, ensemble, n, seeds=seeds, **at) for n in (32, 128)}
    wanted = {0: (mean.q, bias.q, std.q), 2: (mean.chi_1, bias.chi_1, std.chi_1)}
    if pair:
        prediction = jax.jit(lambda q: fluctuations.propagate(name, q, C0, **size))(Q0)
        np.testing.assert_allclose(np.stack(prediction.mean), np.stack(mean), rtol=1e-12)
        np.testing.assert_allclose(prediction.std[::2], np.stack(std), rtol=1e-12)
        wanted[1] = (mean.c, None, prediction.std.c)
    for row, (centre, off, spread) in wanted.items():
        here = {n: d[row] for n, d in draws.items()}
        squares = {n: n * (d - d.mean(-1, keepdims=True)).T ** 2 for n, d in here.items()}
        found, allowed = infinite_width(squares)
        assert np.all(np.abs(found - 10**6 * np.square(spread)) <= allowed)
        assert np.all(allowed < np.maximum(found, 0.1))
        if off is not None:
            found, allowed = infinite_width(
                {n: n * (d.T - np.asarray(centre)) for n, d in here.items()}
            )
            assert np.all(np.abs(found - 10**6 * np.asarray(off)) <= allowed)


@pytest.mark.parametrize("ensemble", ["gaussian", "orthogonal"])
def test_linear_networks(ensemble):
    """A product of Gaussian matrices gains 2 / n a layer; one of orthogonal matrices none."""
    at = {"depth": 4, "width": 50, "weight_var": 1.5, "ensemble": ensemble}
    bias, std = fluctuations.lengths("identity", 2.0, **at)
    gain = 2 / 50 if ensemble == "gaussian" else 0.0
    q = 2.0 * 1.5 ** np.arange(4)
    np.testing.assert_allclose(std.q, q * np.sqrt(gain * np.arange(1, 5)), atol=1e-7)
    np.testing.assert_allclose(std.chi_1, 1.5 * np.sqrt(gain / 50), atol=1e-12)
    np.testing.assert_allclose(np.stack(bias), 0, atol=1e-12)


def test_relu_networks_to_first_order_of_the_exact_moments():
    """(1 + 5 / n)^l - 1 of the squared norm and 2 / n of the layer; for chi_1, (1 + 4 / n) / n."""
    std = fluctuations.lengths("relu", 1.0, depth=4, width=100_000, weight_var=2.0).std
    for layer, before in enumerate(range(1, 4), start=1):
        exact = finite_width.relu_second_moment(100_000, before) - 1
        np.testing.assert_allclose(std.q[layer] ** 2 - 2e-5, exact, rtol=1e-3)
    np.testing.assert_allclose(std.chi_1**2, (1 + 4e-5) * 1e-5, rtol=1e-12)


@pytest.mark.parametrize("ensemble", ["gaussian", "orthogonal"])
def test_the_bias_of_a_quadratic_map(ensemble):
    """For relu2 a length q goes to 3 w q^2 / 2, the mean of a square; on a sphere 2 / n less."""
    at = {"depth": 4, "width": 50, "weight_var": 0.5, "ensemble": ensemble}
    bias, std = fluctuations.lengths("relu2", 1.0, **at)
    if ensemble == "orthogonal":
        np.testing.assert_allclose(bias.q[1], -0.75 * 2 / 50, rtol=1e-12)
    else:
        variance = 0.5**2 * (105 / 2 - (3 / 2) ** 2) / 50
        np.testing.assert_allclose(bias.q[:3], [0, 0, 0.75 * variance], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(std.q[1] ** 2, variance + 2 * 0.75**2 / 50, rtol=1e-12)
    np.testing.assert_allclose(bias.chi_1, 4 * 0.5 / 2 * bias.q, rtol=1e-12, atol=1e-14)


def test_no_signal_has_no_noise():
    bias, std = fluctuations.lengths("tanh", 0.0, depth=4, width=10, weight_var=1.0)
    np.testing.assert_array_equal(np.stack([*bias, *std]), 0)


def test_a_jump_has_no_growth_of_gradients():
    std = fluctuations.lengths("step", 1.0, depth=4, width=10, weight_var=1.0).std
    np.testing.assert_allclose(std.q[:2] ** 2, [0.2, 0.2 * 0.5**2 + 0.25 / 10])
    np.testing.assert_array_equal(std.chi_1, np.inf)


def test_bad_input():
    at = {"depth": 4, "width": 10, "weight_var": 1.0}
    with pytest.raises(ValueError, match="ensemble is 'uniform'; want one of gaussian, orthogonal"):
        fluctuations.lengths("tanh", 1.0, **at, ensemble="uniform")
    with pytest.raises(ValueError, match="width is 0; want a positive integer"):
        fluctuations.propagate("tanh", 1.0, 0.0, **(at | {"width": 0}))
    with pytest.raises(TypeError, match=r"depth is 4\.0, a float; want a positive integer"):
        fluctuations.lengths("tanh", 1.0, **(at | {"depth": 4.0}))
    with pytest.raises(ValueError, match="q0 must be zero or more; got -1"):
        fluctuations.lengths("tanh", -1.0, **at)
    solve = jax.jit(lambda w: fluctuations.lengths("tanh", 1.0, **(at | {"weight_var": w})))
    assert np.isnan(np.stack([*solve(-1.0).bias, *solve(-1.0).std])).all()


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    solve = lambda q: fluctuations.lengths("relu", q, depth=4, width=10, weight_var=1.0)
    shapes = jax.tree.leaves(jax.eval_shape(solve, 1.0))
    assert [(one.shape, one.dtype) for one in shapes] == [((4,), jnp.float32)] * 4
