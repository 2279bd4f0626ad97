"""Finite width against the facts, mpmath, and small random networks."""

import math
import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dltheory.theory import finite_width
from tests.facts import FACTS, assert_agrees
from tests.tier import cases

LYAPUNOV = [name for name in FACTS if name.startswith("js.lyap.")]


@pytest.mark.parametrize("name", LYAPUNOV)
def test_lyapunov_exponents_agree_with_the_facts(name):
    n = FACTS[name]["inputs"]["N"]
    # All facts but one are of entries of variance one, not 1 / n.
    exponents = finite_width.lyapunov_exponents(n, 1.0 if name.endswith("normalised") else n)
    ends = np.asarray(exponents)[[0, -1]]
    measured = {
        "normalised": exponents[0],
        "sum": exponents.sum(),
        "spectrum": exponents,
    }.get(name.split(".")[2], ends)
    assert_agrees(name, measured)


@pytest.mark.parametrize("n", [1, 7, 300])
def test_lyapunov_exponents_agree_with_mpmath(n):
    with mpmath.workdps(30):
        wanted = [
            (mpmath.log(2 * mpmath.mpf("1.7") / n) + mpmath.digamma(mpmath.mpf(n - i) / 2)) / 2
            for i in range(n)
        ]
    measured = finite_width.lyapunov_exponents(n, 1.7)
    np.testing.assert_allclose(measured, np.array(wanted, float), rtol=1e-12, atol=1e-13)
    assert (np.diff(measured) < 0).all()


def test_lyapunov_exponents_are_the_mean_logs_of_the_diagonal_of_qr():
    # By the invariance of Gaussian matrices under rotation this is exact for a single factor.
    n, samples = 5, cases(20_000)
    matrices = np.random.default_rng(0).normal(0, np.sqrt(1.3 / n), (samples, n, n))
    logs = np.log(np.abs(np.linalg.qr(matrices)[1].diagonal(axis1=1, axis2=2)))
    error = logs.std(0, ddof=1) / samples**0.5
    assert (np.abs(logs.mean(0) - finite_width.lyapunov_exponents(n, 1.3)) < 5 * error).all()


@given(st.floats(1e-300, 1e300))
def test_weight_var_shifts_all_exponents(weight_var):
    shift = finite_width.lyapunov_exponents(6, weight_var) - finite_width.lyapunov_exponents(6)
    np.testing.assert_allclose(shift, 0.5 * np.log(weight_var), rtol=1e-13, atol=1e-14)


def test_many_variances_at_once_follow_their_dtype():
    variances = jnp.array([[0.5, 1.0, 2.0]], jnp.float32)
    exponents = jax.jit(finite_width.lyapunov_exponents, static_argnums=0)(4, variances)
    assert exponents.shape == (1, 3, 4)
    assert exponents.dtype == jnp.float32
    alone = finite_width.lyapunov_exponents(4, variances[0, 2])
    np.testing.assert_allclose(exponents[0, 2], alone, rtol=1e-6)
    slope = jax.grad(lambda v: finite_width.lyapunov_exponents(4, v).sum())(0.5)
    np.testing.assert_allclose(slope, 4 / (2 * 0.5))


def test_values_at_the_edge():
    assert (finite_width.lyapunov_exponents(3, 0.0) == -jnp.inf).all()
    assert jnp.isnan(finite_width.lyapunov_exponents(3, jnp.nan)).all()
    traced = jax.jit(finite_width.lyapunov_exponents, static_argnums=0)(3, -1.0)
    assert jnp.isnan(traced).all()


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((0,), ValueError, "width is 0; want a positive integer"),
        ((2.0,), TypeError, "width is 2.0, a float; want a positive integer"),
        ((True,), TypeError, "width is True, a bool; want a positive integer"),
        ((3, -1.0), ValueError, "weight_var must be zero or more; got -1.0"),
        ((3, [1.0, -1.0]), ValueError, "weight_var must be zero or more; got [1.0, -1.0]"),
    ],
)
def test_illegal_arguments_are_refused(args, error, text):
    with pytest.raises(error, match=re.escape(text)):
        finite_width.lyapunov_exponents(*args)


RELU = [n for n in FACTS if n.startswith(("js.relu_lognorm.", "js.relu_moment2."))]


def survival(n, depth):
    return 1 - finite_width.relu_death_probability(n, depth)


@pytest.mark.parametrize("name", RELU)
def test_relu_norms_agree_with_the_facts(name):
    given = FACTS[name]["inputs"]
    n, depth = given["n"], given.get("L", 1)
    if name.startswith("js.relu_moment2."):
        assert_agrees(name, finite_width.relu_second_moment(n, depth))
        return
    scaled = depth * np.array(finite_width.relu_log_norm(n))
    if name == "js.relu_lognorm.asym":
        scaled *= n
    if name.startswith("js.relu_lognorm.depth."):
        scaled = np.append(scaled, survival(n, depth))
    assert_agrees(name, scaled)


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_relu_log_norm_agrees_with_mpmath(n):
    with mpmath.workdps(30):
        weights = [mpmath.binomial(n, k) / (mpmath.mpf(2) ** n - 1) for k in range(1, n + 1)]
        logs = [mpmath.log(mpmath.mpf(4) / n) + mpmath.digamma(k / 2) for k in range(1, n + 1)]
        mean = mpmath.fdot(weights, logs)
        spread = [
            mpmath.psi(1, k / 2) + (log - mean) ** 2
            for k, log in zip(range(1, n + 1), logs, strict=True)
        ]
        wanted = float(mean), float(mpmath.fdot(weights, spread))
    np.testing.assert_allclose(finite_width.relu_log_norm(n), wanted, rtol=1e-12)


def test_relu_log_norm_of_wide_layers():
    mean, variance = finite_width.relu_log_norm(10_000)
    np.testing.assert_allclose([1e4 * mean, 1e4 * variance], [-2.5, 5], rtol=1e-3)


def relu_nets(n, depth, samples):
    """Squared norms of the signal and tangent kernels of He nets, by the chain rule."""
    generator = np.random.default_rng(3)
    x = np.zeros((samples, n))
    x[:, 0] = 1
    weights, signals = [], [x]
    for _ in range(depth):
        weights.append(generator.normal(0, math.sqrt(2 / n), (samples, n, n)))
        signals.append(np.maximum((weights[-1] @ signals[-1][..., None])[..., 0], 0))
    gradient = generator.normal(0, math.sqrt(2 / n), (samples, n))  # of the output layer
    kernel = 2 / n * (signals[-1] ** 2).sum(-1)
    for weight, below, above in zip(weights[::-1], signals[-2::-1], signals[:0:-1], strict=True):
        delta = gradient * (above > 0)
        kernel += 2 / n * (below**2).sum(-1) * (delta**2).sum(-1)
        gradient = (delta[:, None] @ weight)[:, 0]
    return (signals[-1] ** 2).sum(-1), kernel


def test_small_relu_nets():
    n, depth = 4, 3
    norms, kernels = relu_nets(n, depth, cases(1_000_000))
    sigma = lambda samples: 5 * samples.std(ddof=1) / math.sqrt(samples.size)
    relative = (kernels / kernels.mean()) ** 2
    wanted = finite_width.relu_ntk_second_moment(n, depth)
    # The mean is known, but its estimate cancels most of the noise.
    assert abs(relative.mean() - wanted) < sigma(relative)
    assert abs((norms**2).mean() - finite_width.relu_second_moment(n, depth)) < sigma(norms**2)
    dead = norms == 0
    assert abs(dead.mean() - finite_width.relu_death_probability(n, depth)) < sigma(dead)
    logs, (mean, variance) = np.log(norms[~dead]), finite_width.relu_log_norm(n)
    assert abs(logs.mean() - depth * mean) < sigma(logs)
    squares = (logs - depth * mean) ** 2
    assert abs(squares.mean() - depth * variance) < sigma(squares)


def test_tangent_kernels_fluctuate_as_the_fact_says():
    """Their logarithm has the slope 5 in depth over width, up to a factor of order one."""
    assert FACTS["ntk.fluct"]["value"] is True
    logs = [math.log(finite_width.relu_ntk_second_moment(1000, depth)) for depth in (2000, 3000)]
    np.testing.assert_allclose(logs[1] - logs[0], 5, rtol=0.02)


def test_gradient_bands():
    at = {"depth": 3, "width": 50}
    relu = finite_width.log_gradient_std("relu", 1.0, weight_var=2.0, **at)
    np.testing.assert_allclose(relu**2, 5 / 50 * np.arange(1, 4), rtol=1e-12)
    linear = finite_width.log_gradient_std("identity", 1.0, weight_var=1.0, **at)
    np.testing.assert_allclose(linear**2, 2 / 50 * np.arange(1, 4), rtol=1e-12)


def test_gradient_bands_of_networks():
    """The fluctuations of the length add to those of the slopes: with tanh by a half and more."""
    n, depth, samples = 60, 8, 400
    generator, x, v = np.random.default_rng(5), None, None
    x = np.full((samples, n), 1.0)
    v = np.tile([1.0, -1.0], (samples, n // 2))
    start = (v**2).sum(-1)
    for _ in range(depth + 1):
        weights = generator.normal(0, math.sqrt(2 / n), (samples, n, n))
        h, v = ((weights @ a[..., None])[..., 0] for a in (x, v))
        x, v = np.tanh(h), v * np.cosh(h) ** -2
    measured = np.log((v**2).sum(-1) / start).std(ddof=1)
    at = {"depth": depth + 1, "width": n, "weight_var": 2.0}
    wanted = finite_width.log_gradient_std("tanh", 2.0, **at)[-1]
    # A standard deviation has the relative error (2 samples)**-0.5; the theory is of first order.
    assert abs(measured / wanted - 1) < 4 / math.sqrt(2 * samples) + 3 / n


def test_bad_counts():
    for function in (finite_width.relu_second_moment, finite_width.relu_death_probability):
        with pytest.raises(ValueError, match="depth is 0; want a positive integer"):
            function(3, 0)
    with pytest.raises(TypeError, match=re.escape("width is 2.5, a float; want a positive")):
        finite_width.relu_log_norm(2.5)
    with pytest.raises(ValueError, match="width is 0; want a positive integer"):
        finite_width.relu_ntk_second_moment(0, 1)
    with pytest.raises(ValueError, match="weight_var must be zero or more; got -2"):
        finite_width.log_gradient_std("relu", 1.0, depth=1, width=2, weight_var=-2)
