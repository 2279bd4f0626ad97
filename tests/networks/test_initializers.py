"""Variances, isometry and the uniform measure of the weight ensembles."""

import math
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dltheory.networks import initializers
from tests.facts import FACTS, assert_agrees
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
    "init",
    [
        initializers.gaussian(2.0),
        initializers.orthogonal(2.0),
        initializers.normal(2.0),
        initializers.delta_orthogonal(2.0),
        initializers.scaled(initializers.he("truncated_normal"), 0.5),
        initializers.glorot("uniform"),
    ],
)
def test_dtype_and_shape_are_the_asked_ones(init, dtype):
    W = init(KEYS[0], (3, 4), dtype)
    assert W.shape == (3, 4)
    assert W.dtype == dtype
    assert np.all(np.isfinite(W.astype(np.float32)))


def test_the_rules_have_the_variances_of_the_facts():
    fact = FACTS["mf.init.rules"]["inputs"]
    shape = (fact["fan_in"], fact["fan_out"])
    unit = jax.random.normal(KEYS[0], shape)
    rules = (
        initializers.lecun(),
        initializers.glorot(),
        initializers.he(),
        initializers.he(slope=fact["a"]),
    )
    variances = [((rule(KEYS[0], shape) / unit) ** 2).max() for rule in rules]
    # The last number is the half-width of the uniform one.
    flat = initializers.glorot("uniform")(KEYS[0], shape)
    width = (flat / jax.random.uniform(KEYS[0], shape, float, -1, 1)).max()
    assert_agrees("mf.init.rules", [*variances, width])


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize("shape", [(90, 400), (3, 3, 10, 400)])
def test_every_distribution_has_the_variance_of_its_rule(distribution, shape):
    W = np.ravel(initializers.glorot(distribution)(KEYS[1], shape))
    taps = math.prod(shape[:-2])
    unit = W / math.sqrt(2 / (taps * (shape[-2] + shape[-1])))
    error = math.sqrt((np.mean(unit**4) - 1) / W.size)
    assert abs(np.mean(unit**2) - 1) < 4 * error
    width = FACTS["act.init.truncnorm_std"]["value"]
    law = {
        "normal": stats.norm(),
        "truncated_normal": stats.truncnorm(-2, 2, scale=1 / width),
        "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
    }[distribution]
    assert stats.kstest(unit, law.cdf).pvalue > 1e-3


def test_the_width_of_the_truncated_normal_agrees_with_the_facts():
    draw = initializers.lecun("truncated_normal")(KEYS[0], (1, 50))
    cut = jax.random.truncated_normal(KEYS[0], -2, 2, (1, 50))
    assert_agrees("act.init.truncnorm_std", (cut / draw).max())


@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize("taps", [3, 4])
def test_delta_orthogonal_convolutions_are_isometries(taps, padding):
    fact = FACTS["cnn.delta_orth"]["inputs"]
    n, inputs, outputs = fact["n"], fact["c_in"], fact["c_out"]
    W = initializers.delta_orthogonal(1.0)(KEYS[0], (taps, taps, inputs, outputs))

    def convolve(x):
        x = x.reshape(1, n, n, inputs)
        if padding == "circular":
            pad = ((taps - 1) // 2, taps // 2)
            x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), mode="wrap")
        mode = "SAME" if padding == "zero" else "VALID"
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, W, (1, 1), mode, dimension_numbers=numbers).ravel()

    matrix = jax.jit(jax.vmap(convolve))(jnp.eye(n * n * inputs))
    s = np.linalg.svd(matrix, compute_uv=False)
    assert_agrees("cnn.delta_orth", [s[0], s[-1]])
    assert len(s) == n * n * inputs


def test_delta_orthogonal_matrices_have_the_variance_and_differ():
    draw = jax.vmap(lambda key: initializers.delta_orthogonal(2.5)(key, (5, 3, 3)))
    W = draw(KEYS)
    s = np.linalg.svd(W[:, 2], compute_uv=False)
    np.testing.assert_allclose(s, math.sqrt(2.5), rtol=1e-12)
    assert not np.any(W[:, [0, 1, 3, 4]])
    assert len(np.unique(np.round(W[:, 2, 0, 0], 9))) == len(KEYS)


Point = namedtuple("Point", ["weight_var", "q"])
Point.__new__.__defaults__ = (math.nan,)


def test_a_critical_scheme_draws_at_its_point():
    scheme = initializers.critical(Point(1.7), bias_var=0.3, ensemble=initializers.orthogonal)
    np.testing.assert_array_equal(
        scheme.kernel(KEYS[0], (4, 5)), initializers.orthogonal(1.7)(KEYS[0], (4, 5))
    )
    np.testing.assert_array_equal(
        scheme.bias(KEYS[1], (5,)), initializers.normal(0.3)(KEYS[1], (5,))
    )
    default = initializers.critical(Point(1.7))
    np.testing.assert_array_equal(
        default.kernel(KEYS[0], (4, 5)), initializers.gaussian(1.7)(KEYS[0], (4, 5))
    )
    assert not np.any(default.bias(KEYS[1], (5,)))


def test_branch_factors():
    assert initializers.branch_factors("inverse_sqrt", depth=16) == (0.25,)
    assert initializers.branch_factors("inverse_sqrt", depth=16, layers=2) == (1.0, 0.25)
    assert initializers.branch_factors("fixup", depth=16, layers=3) == (0.5, 0.5, 0.0)
    assert initializers.branch_factors("fixup", depth=16, layers=2) == (0.25, 0.0)
    assert initializers.branch_factors("fixup", depth=16) == (0.0,)
    assert initializers.branch_factors("zero", depth=16, layers=2) == (1.0, 0.0)
    draw = initializers.scaled(initializers.he(), 0.25)(KEYS[0], (4, 5))
    np.testing.assert_allclose(draw, initializers.he()(KEYS[0], (4, 5)) / 4, rtol=1e-14)


@pytest.mark.usefixtures("float32")
def test_the_default_dtype_is_the_default_of_jax():
    assert initializers.orthogonal(1.0)(KEYS[0], (3, 4)).dtype == jnp.float32
    assert initializers.gaussian(1.0)(KEYS[0], (3, 4)).dtype == jnp.float32


@pytest.mark.parametrize(
    "ensemble", [initializers.gaussian, initializers.orthogonal, initializers.delta_orthogonal]
)
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
    with pytest.raises(ValueError, match=r"weight_var is -1.0"):
        initializers.delta_orthogonal(-1.0)
    with pytest.raises(ValueError, match=r"shape is \(3, 4, 2\), with more inputs than outputs"):
        initializers.delta_orthogonal(1.0)(KEYS[0], (3, 4, 2))
    for rule in (initializers.lecun, initializers.glorot, initializers.he):
        with pytest.raises(ValueError, match=r"distribution is 'cauchy'; want one of normal, trun"):
            rule("cauchy")
    with pytest.raises(ValueError, match=r"rule is 'rezero'; want one of inverse_sqrt, fixup"):
        initializers.branch_factors("rezero", depth=2)
    with pytest.raises(ValueError, match=r"depth is 0 and layers is 1; want both one or more"):
        initializers.branch_factors("zero", depth=0)
    with pytest.raises(ValueError, match=r"bias_var is -0.1"):
        initializers.critical(Point(1.0), bias_var=-0.1)
    for ensemble in (
        initializers.gaussian,
        initializers.orthogonal,
        initializers.delta_orthogonal,
        lambda _: initializers.he(),
    ):
        with pytest.raises(ValueError, match=r"shape is \(3,\), .* use initializers.normal"):
            ensemble(1.0)(KEYS[0], (3,))
