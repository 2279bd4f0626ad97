"""Fitted power laws and their curvature against numpy and scipy; the honesty of their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from dltheory.numerics.scaling import curvature, power_law
from tests.tier import cases

X = jnp.array([16.0, 32, 64, 128, 300, 512])
NOISE = jnp.array([0.1, -0.05, 0.03, 0.08, -0.12, 0.02])
Y = 2.5 * X**-0.7 * jnp.exp(NOISE)
STDERR = Y * jnp.array([0.1, 0.2, 0.05, 0.1, 0.3, 0.15])


def test_an_exact_law_is_recovered():
    fit = power_law(X, 2.5 * X**-0.7)
    np.testing.assert_allclose(fit.exponent, -0.7, rtol=1e-12)
    np.testing.assert_allclose(fit.prefactor, 2.5, rtol=1e-12)
    assert fit.exponent_stderr < 1e-14


def test_integers_and_lists_are_welcome():
    widths = [16, 32, 64, 128, 300, 512]
    for given in (widths, np.array(widths), jnp.array(widths)):
        np.testing.assert_allclose(power_law(given, Y), power_law(X, Y), rtol=1e-13)
    fit = power_law(widths, Y.astype(jnp.float32))
    assert {value.dtype for value in fit} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(fit, power_law(X, Y), rtol=1e-5)


def test_without_errors_it_is_ordinary_least_squares():
    want = stats.linregress(np.log(X), np.log(Y))
    fit = power_law(X, Y)
    np.testing.assert_allclose(fit.exponent, want.slope, rtol=1e-12)
    np.testing.assert_allclose(fit.exponent_stderr, want.stderr, rtol=1e-12)
    np.testing.assert_allclose(fit.prefactor, np.exp(want.intercept), rtol=1e-12)


def test_with_errors_it_is_weighted_least_squares():
    weights = np.asarray(Y / STDERR)
    coefficients, cov = np.polyfit(np.log(X), np.log(Y), 1, w=weights, cov="unscaled")
    fit = power_law(X, Y, stderr=STDERR)
    np.testing.assert_allclose(fit.exponent, coefficients[0], rtol=1e-11)
    np.testing.assert_allclose(fit.prefactor, np.exp(coefficients[1]), rtol=1e-11)
    np.testing.assert_allclose(fit.exponent_stderr, np.sqrt(cov[0, 0]), rtol=1e-11)


@pytest.mark.parametrize("given", [False, True])
def test_standard_errors_are_honest(given):
    draws = cases(40_000)
    relative = jnp.array([0.02, 0.01, 0.03, 0.02, 0.01, 0.02]) if given else jnp.full(6, 0.02)
    z = jax.random.normal(jax.random.key(0), (draws, 6))
    y = 2.5 * X[None] ** -0.7 * jnp.exp(relative[None] * z)
    if given:
        fit = jax.jit(jax.vmap(lambda y: power_law(X, y, stderr=relative * y)))(y)
        law = stats.norm
    else:
        fit = jax.jit(jax.vmap(lambda y: power_law(X, y)))(y)
        law = stats.t(df=4)
    score = (fit.exponent + 0.7) / fit.exponent_stderr
    assert stats.kstest(np.asarray(score), law.cdf).pvalue > 1e-3


def test_units_do_not_matter():
    fit = power_law(X, Y, stderr=STDERR)
    other = power_law(1e3 * X, 1e-5 * Y, stderr=1e-5 * STDERR)
    np.testing.assert_allclose(other.exponent, fit.exponent, rtol=1e-11)
    np.testing.assert_allclose(other.exponent_stderr, fit.exponent_stderr, rtol=1e-11)
    np.testing.assert_allclose(other.prefactor, 1e-5 * 1e3**-fit.exponent * fit.prefactor)


def test_tiny_errors_do_not_overflow_in_float32():
    x, y, stderr = (a.astype(jnp.float32) for a in (X, Y, 1e-25 * STDERR))
    fit = power_law(x, y, stderr=stderr)
    want = power_law(X, Y, stderr=STDERR)
    np.testing.assert_allclose(fit.exponent, want.exponent, rtol=1e-5)
    np.testing.assert_allclose(fit.exponent_stderr, 1e-25 * want.exponent_stderr, rtol=1e-5)


def test_derivatives():
    of_logs = jax.jit(lambda u, v, s: power_law(jnp.exp(u), jnp.exp(v), stderr=jnp.exp(s)))
    logs = (jnp.log(X), jnp.log(Y), jnp.log(STDERR))
    check_grads(of_logs, logs, order=1)
    check_grads(jax.jit(lambda u, v: power_law(jnp.exp(u), jnp.exp(v))), logs[:2], order=1)
    # A perfect fit has standard error 0, where a square root has no derivative.
    two_points = jnp.array([1.0, 2.0, 4.0])
    gradient = jax.grad(lambda y: power_law(two_points, y).exponent_stderr)(jnp.ones(3))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "y", "stderr"])
def test_illegal_data_make_the_whole_fit_nan(where, bad):
    arguments = {"x": X, "y": Y, "stderr": STDERR}
    arguments[where] = arguments[where].at[2].set(bad)
    fit = power_law(arguments["x"], arguments["y"], stderr=arguments["stderr"])
    assert np.all(np.isnan(fit))


def test_one_x_has_no_exponent():
    assert np.all(np.isnan(power_law(jnp.full(4, 3.0), Y[:4])))


def test_illegal_shapes_are_named():
    with pytest.raises(ValueError, match=r"y has shape \(5,\), x has \(6,\); want \(N,\) for all"):
        power_law(X, Y[:5])
    with pytest.raises(ValueError, match=r"stderr has shape \(\), x has \(6,\)"):
        power_law(X, Y, stderr=0.1)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\)"):
        power_law(X.reshape(2, 3), Y.reshape(2, 3))
    with pytest.raises(ValueError, match="x and y hold 2 points; want 3 or more without stderr"):
        power_law(X[:2], Y[:2])
    with pytest.raises(ValueError, match="x and y hold 1 points; want 2 or more with stderr"):
        power_law(X[:1], Y[:1], stderr=STDERR[:1])
    with pytest.raises(TypeError, match="y holds complex128; want real numbers"):
        power_law(X, Y.astype(complex))


def test_curvature_with_errors_is_the_quadratic_term_of_a_weighted_fit():
    weights = np.asarray(Y / STDERR)
    coefficients, cov = np.polyfit(np.log(X), np.log(Y), 2, w=weights, cov="unscaled")
    test = curvature(X, Y, stderr=STDERR)
    np.testing.assert_allclose(test.value, coefficients[0], rtol=1e-9)
    np.testing.assert_allclose(test.stderr, np.sqrt(cov[0, 0]), rtol=1e-10)
    score = abs(coefficients[0]) / np.sqrt(cov[0, 0])
    np.testing.assert_allclose(test.p_value, 2 * stats.norm.sf(score), rtol=1e-9)


def test_curvature_without_errors_is_the_f_test_of_two_models():
    u, v = np.log(X), np.log(Y)
    straight, bent = (np.polyfit(u, v, degree) for degree in (1, 2))
    squares = [float(np.sum((v - np.polyval(fit, u)) ** 2)) for fit in (straight, bent)]
    f = (squares[0] - squares[1]) / (squares[1] / 3)
    test = curvature(X, Y)
    np.testing.assert_allclose(test.value, bent[0], rtol=1e-9)
    np.testing.assert_allclose((test.value / test.stderr) ** 2, f, rtol=1e-9)
    np.testing.assert_allclose(test.p_value, stats.f.sf(f, 1, 3), rtol=1e-9)
    single = curvature(X, Y.astype(jnp.float32))
    assert {value.dtype for value in single} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(single, test, rtol=1e-4)


@pytest.mark.parametrize("given", [False, True])
def test_p_values_are_uniform_under_a_power_law_and_small_off_it(given):
    z = jax.random.normal(jax.random.key(1), (cases(20_000), 6))
    errors = lambda y: {"stderr": 0.02 * y} if given else {}
    test = jax.jit(jax.vmap(lambda y: curvature(X, y, **errors(y)).p_value))
    y = 2.5 * X[None] ** -0.7 * jnp.exp(0.02 * z)
    assert stats.kstest(np.asarray(test(y)), "uniform").pvalue > 1e-3
    # A floor under the law bends it.
    assert np.median(test(y + 0.02)) < 1e-2


def test_curvature_needs_three_places():
    two = jnp.array([16.0, 16, 64, 64, 64, 16])
    assert np.all(np.isnan(curvature(two, Y)))
    assert np.all(np.isnan(curvature(X, Y.at[1].set(-1.0), stderr=STDERR)))
    with pytest.raises(ValueError, match="x and y hold 3 points; want 4 or more without stderr"):
        curvature(X[:3], Y[:3])
    with pytest.raises(ValueError, match="x and y hold 2 points; want 3 or more with stderr"):
        curvature(X[:2], Y[:2], stderr=STDERR[:2])
    flat = curvature(jnp.array([1.0, 2, 4, 8]), jnp.ones(4))
    np.testing.assert_array_equal(np.asarray(flat), [0, 0, 1])
