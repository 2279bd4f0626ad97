"""Variances, isometry and the uniform measure of the weight ensembles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dltheory.networks import initializers
from tests.tier import cases

KEYS = jax.random.split(jax.random.key(0), 4)
SHAPES = [(60, 60), (30, 90), (90, 30), (3, 3, 7, 40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_weights_have_the_stated_law(shape):
    W = initializers.gaussian(1.7)(KEYS[0], shape)
    unit = np.ravel(W) * np.sqrt(np.prod(shape[:-1]) / 1.7)
    assert stats.kstest(unit, "norm").pvalue > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_singular_values_are_equal_and_as_stated(shape):
    W = np.asarray(initializers.orthogonal(1.7)(KEYS[1], shape)).reshape(-1, shape[-1])
    n, m = W.shape
    s = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(s, np.sqrt(1.7 * max(n, m) / n), rtol=1e-12)
    # The mean square of an entry is then that of the Gaussian ensemble, exactly.
    np.testing.assert_allclose(np.mean(W**2), 1.7 / n, rtol=1e-12)


def test_orthogonal_matrices_are_uniform():
    # Under Haar measure on O(n) every odd moment of the trace up to the n-th is 0 and every even
    # one that of a standard Gaussian (Diaconis and Shahshahani). Without the sign correction of QR
    # the mean of the trace is not 0.
    count = 10 * cases(2000)
    keys = jax.random.split(KEYS[2], count)
    draw = lambda key: jnp.trace(initializers.orthogonal(1.0)(key, (5, 5)))
    trace = np.asarray(jax.vmap(draw)(keys))
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(trace**power) - moment) < 4 * np.sqrt(variance / count), power


def test_biases_have_the_stated_law():
    b = initializers.normal(0.2)(KEYS[3], (5000,))
    assert stats.kstest(np.asarray(b) / np.sqrt(0.2), "norm").pvalue > 1e-3
    assert not np.any(initializers.normal(0.0)(KEYS[3], (5,)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "init", [initializers.gaussian(2.0), initializers.orthogonal(2.0), initializers.normal(2.0)]
)
def test_dtype_and_shape_are_the_asked_ones(init, dtype):
    W = init(KEYS[0], (3, 4), dtype)
    assert W.shape == (3, 4)
    assert W.dtype == dtype
    assert np.all(np.isfinite(W.astype(np.float32)))


@pytest.mark.usefixtures("float32")
def test_the_default_dtype_is_the_default_of_jax():
    assert initializers.orthogonal(1.0)(KEYS[0], (3, 4)).dtype == jnp.float32
    assert initializers.gaussian(1.0)(KEYS[0], (3, 4)).dtype == jnp.float32


@pytest.mark.parametrize("ensemble", [initializers.gaussian, initializers.orthogonal])
def test_the_variance_may_be_traced(ensemble):
    draw = lambda weight_var: ensemble(weight_var)(KEYS[0], (3, 4))
    variances = jnp.array([0.5, 2.0, -1.0])
    W = jax.vmap(draw)(variances)
    np.testing.assert_allclose(W[1], 2 * W[0], rtol=1e-12)
    assert np.all(np.isnan(W[2]))
    slope = jax.grad(lambda v: jnp.sum(draw(v) ** 2))(2.0)
    np.testing.assert_allclose(slope, jnp.sum(draw(2.0) ** 2) / 2, rtol=1e-12)


def test_illegal_arguments_are_named():
    with pytest.raises(ValueError, match=r"weight_var is -1.0, but .* want weight_var >= 0"):
        initializers.gaussian(-1.0)
    with pytest.raises(ValueError, match=r"weight_var is -1.0"):
        initializers.orthogonal(-1.0)
    with pytest.raises(ValueError, match=r"bias_var is -0.5"):
        initializers.normal(-0.5)
    with pytest.raises(ValueError, match=r"weight_var has shape \(2,\); want a scalar"):
        initializers.gaussian(jnp.ones(2))
    for ensemble in (initializers.gaussian, initializers.orthogonal):
        with pytest.raises(ValueError, match=r"shape is \(3,\), .* use initializers.normal"):
            ensemble(1.0)(KEYS[0], (3,))
