"""Bias and variance of clipping against the facts, mpmath, limits, and clipped random gradients."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mpmath import mp

from dltheory.networks import transforms
from dltheory.theory import clipping
from tests.facts import FACTS, assert_agrees
from tests.tier import cases

COVERED = ("mf.clip.norm.10.2", "mf.clip.shrink")

BY_VALUE = jax.jit(clipping.by_value)


@partial(jax.jit, static_argnums=3)
def _by_norm(mean_norm, var, limit, dim):
    arguments = (mean_norm, var, limit)
    return clipping.by_norm(*arguments, dim=dim), clipping.norm_scale(*arguments, dim=dim)


def by_norm(mean_norm, var, limit, *, dim):
    """Moments and the mean scale; in fours always, for few compilations."""
    shape = np.broadcast_shapes(*map(np.shape, (mean_norm, var, limit)))
    full = [jnp.asarray(np.broadcast_to(a, shape or (4,)), float) for a in (mean_norm, var, limit)]
    moments, scale = _by_norm(*full, dim)
    return (moments, scale) if shape else jax.tree.map(lambda a: a[0], (moments, scale))


def test_facts():
    fact = FACTS["mf.clip.norm.10.2"]
    d, c = fact["inputs"]["d"], fact["inputs"]["c"]
    # Without a mean the variance is the second moment.
    assert_agrees("mf.clip.norm.10.2", by_norm(0.0, 1.0, c, dim=d)[0].variance)
    assert {name for name in FACTS if name.startswith("mf.clip.")} == set(COVERED)


@pytest.mark.parametrize("seed", range(3))
def test_clipping_by_norm_is_the_projection_onto_the_ball(seed):
    # "mf.clip.shrink": direction kept, nowhere further apart than before, and done once for all.
    clip = transforms.clip_by_global_norm(1.0)
    project = lambda g: clip.update(g, clip.init(g))[0]
    a, b = jax.random.normal(jax.random.key(seed), (2, 3))
    p, q = project(a), project(b)
    np.testing.assert_allclose(p / jnp.linalg.norm(p), a / jnp.linalg.norm(a), rtol=1e-14)
    assert jnp.linalg.norm(p - q) <= jnp.linalg.norm(a - b) * (1 + 1e-14)
    np.testing.assert_allclose(project(p), p, rtol=1e-14)


def _value_moments(m, var, limit):
    """By quadrature of the definition."""
    s, edges = mpmath.sqrt(var), [-limit, limit]
    inner = [m + k * s for k in (-6, -3, -1, 0, 1, 3, 6) if -limit < m + k * s < limit]
    points = sorted([*edges, *inner])
    density = lambda g: mpmath.npdf(g, m, s)
    above, below = mpmath.ncdf((m - limit) / s), mpmath.ncdf(-(m + limit) / s)
    average = lambda h: (
        mpmath.quad(lambda g: h(g) * density(g), points) + h(limit) * above + h(-limit) * below
    )
    bias = average(lambda g: g - m)
    return above + below, m + bias, bias, average(lambda g: (g - m - bias) ** 2)


@pytest.mark.parametrize(
    "arguments",
    [
        (0.5, 1.0, 1.0),
        (-3.0, 1.0, 1.0),
        (8.0, 1.0, 1.0),  # all but surely beyond: a variance of 5e-14
        (1.0, 0.04, 2.0),  # hardly ever: a bias of -1e-8
        (1.0, 0.01, 1.0),
        (-20.0, 4.0, 1.0),
    ],
)
def test_by_value_agrees_with_mpmath(arguments):
    with mp.workdps(40):
        wanted = [float(w) for w in _value_moments(*map(mpmath.mpf, arguments))]
    np.testing.assert_allclose(BY_VALUE(*arguments), wanted, rtol=1e-10)


def _norm_moments(m, var, limit, d):
    """By the sum over the Poisson variable, term by term."""
    half, u = m**2 / var / 2, limit**2 / var / 2
    upper = lambda a: mpmath.gammainc(a, u, mpmath.inf)
    totals = [mpmath.mpf(0)] * 4
    for k in range(int(half + 15 * mpmath.sqrt(half) + 40)):
        weight = mpmath.exp(-half) * half**k / mpmath.factorial(k)
        a = d / mpmath.mpf(2) + k
        beyond = lambda a: upper(a) / mpmath.gamma(a)
        lost = lambda a, b=beyond: (
            b(a) - mpmath.sqrt(u) * upper(a - mpmath.mpf(1) / 2) / mpmath.gamma(a)
        )
        square = var * 2 * a * (1 - beyond(a + 1)) + limit**2 * beyond(a)
        terms = (beyond(a), lost(a + 1), square, lost(a))
        totals = [total + weight * term for total, term in zip(totals, terms, strict=True)]
    rate, lost, square, scale_lost = totals
    mean = m * (1 - lost)
    return rate, mean, -m * lost, square - mean**2, 1 - scale_lost


@pytest.mark.parametrize(
    ("dim", "rows"),
    [
        (1, [(0.0, 1.0, 1.0), (1.0, 1.0, 1.0), (5.0, 0.1, 3.0), (0.1, 2.0, 7.0)]),
        (10, [(0.0, 1.0, 2.0), (3.0, 1.0, 2.0), (6.0, 0.5, 8.0), (1.0, 1.0, 20.0)]),
        (50, [(0.0, 0.01, 1.0), (0.5, 0.01, 1.0), (6.0, 1.0, 22.0), (9.0, 1.0, 4.0)]),
    ],
)
def test_by_norm_agrees_with_mpmath(dim, rows):
    moments, scale = by_norm(*np.transpose(rows), dim=dim)
    with mp.workdps(30):
        wanted = np.array([_norm_moments(*map(mpmath.mpf, row), dim) for row in rows], float)
    # The variance is a difference of squares of the order of the threshold's.
    np.testing.assert_allclose(np.transpose(moments), wanted[:, :4], rtol=1e-10, atol=3e-14)
    np.testing.assert_allclose(scale, wanted[:, 4], rtol=1e-12)


def test_one_coordinate_is_clipped_alike_by_value_and_by_norm():
    points = np.array([[0.5, 3.0, 0.2, 1.0], [1.0, 1.0, 4.0, 0.3], [1.0, 1.0, 0.7, 2.0]])
    np.testing.assert_allclose(by_norm(*points, dim=1)[0], BY_VALUE(*points), rtol=1e-11)


def test_a_strong_gradient_is_clipped_to_a_projection_on_the_sphere():
    # To first order in the noise: what is left is C (1 - (d - 1) s^2 / 2 m^2) along m, and the
    # noise across, shrunk by C / m. The sum is over a Poisson variable of mean 5e5.
    m, limit, d = 1000.0, 10.0, 50
    one, _ = by_norm(m, 1.0, limit, dim=d)
    np.testing.assert_allclose(one.rate, 1, rtol=1e-12)
    np.testing.assert_allclose(one.mean, limit * (1 - (d - 1) / 2 / m**2), rtol=1e-9)
    np.testing.assert_allclose(one.variance, (d - 1) * (limit / m) ** 2, rtol=1e-3)


def test_the_sum_over_a_poisson_variable_is_smooth_where_it_begins_to_skip():
    # At a mean of 256 the sum turns from every value to every sixteenth of a deviation.
    m = np.sqrt(2 * np.linspace(255.6, 256.4, 12))
    mean = [by_norm(part, 1.0, 25.0, dim=10)[0].mean for part in np.split(m, 3)]
    assert np.abs(np.diff(np.concatenate(mean), 5)).max() < 1e-11


@pytest.mark.parametrize("dim", [1, 10])
def test_limits(dim):
    m = jnp.array([0.0, 0.3, 1.0, 4.0])
    for moments in (
        lambda *a: by_norm(*a, dim=dim)[0],
        BY_VALUE,
    ):
        size = dim if moments is not BY_VALUE else 1
        free = moments(m, 2.0, math.inf)
        np.testing.assert_allclose(free.mean, m, rtol=1e-12)
        np.testing.assert_allclose(free.variance, 2.0 * size, rtol=1e-10)
        assert not np.any(free.rate)
        quiet = moments(m, 0.0, 1.0)
        np.testing.assert_array_equal(quiet.rate, [0, 0, 0, 1])
        np.testing.assert_allclose(quiet.mean, [0, 0.3, 1, 1], rtol=1e-15)
        np.testing.assert_allclose(quiet.bias, [0, 0, 0, -3], atol=1e-15)
        assert not np.any(quiet.variance)
        nothing = moments(m, 2.0, 0.0)
        np.testing.assert_allclose(nothing.bias, -m, atol=1e-15)
        np.testing.assert_allclose(nothing.variance, 0, atol=1e-15)
    np.testing.assert_allclose(by_norm(m, 0.0, 1.0, dim=dim)[1], [1, 1, 1, 0.25], rtol=1e-15)
    np.testing.assert_allclose(by_norm(m, 2.0, 0.0, dim=dim)[1], 0, atol=1e-15)


@pytest.mark.parametrize("mean", [0.0, 0.7, -2.0])
def test_values_clipped_in_a_network_of_noise(mean):
    # Coordinates are independent, so one update of many is as many samples.
    count, var, limit = 20 * cases(20_000), 1.5, 1.2
    g = mean + math.sqrt(var) * jax.random.normal(jax.random.key(1), (count,))
    clip = transforms.clip_by_value(limit)
    clipped, state = clip.update(g, clip.init(g))
    theory = BY_VALUE(mean, var, limit)
    error = math.sqrt(theory.rate * (1 - theory.rate) / count)
    assert abs(state.rate - theory.rate) < 4 * error
    assert abs(clipped.mean() - theory.mean) < 4 * math.sqrt(theory.variance / count)
    fourth = jnp.mean((clipped - theory.mean) ** 4)
    error = jnp.sqrt((fourth - theory.variance**2) / count)
    assert abs(clipped.var() - theory.variance) < 4 * error


@pytest.mark.parametrize("m", [0.0, 2.0])
def test_norms_clipped_over_many_steps(m):
    dim, var, limit, steps = 10, 0.5, 2.5, 10 * cases(20_000)
    truth = jnp.full(dim, m / math.sqrt(dim))
    clip = transforms.clip_by_global_norm(limit)
    noise = jax.random.normal(jax.random.key(2), (steps, dim))

    def step(state, z):
        clipped, state = clip.update(truth + math.sqrt(var) * z, state)
        return state, (clipped, state.scale)

    state, (clipped, scale) = jax.lax.scan(step, clip.init(truth), noise)
    theory, expected = by_norm(m, var, limit, dim=dim)
    error = math.sqrt(theory.rate * (1 - theory.rate) / steps)
    assert abs(state.rate - theory.rate) < 4 * error
    along = clipped @ jnp.full(dim, 1 / math.sqrt(dim))
    assert abs(along.mean() - theory.mean) < 4 * along.std() / math.sqrt(steps)
    squares = jnp.sum((clipped - clipped.mean(0, keepdims=True)) ** 2, axis=1)
    assert abs(squares.mean() - theory.variance) < 4 * squares.std() / math.sqrt(steps)
    assert abs(scale.mean() - expected) < 4 * scale.std() / math.sqrt(steps)
    assert 0.05 < theory.rate < 0.95


@pytest.mark.parametrize("dim", [None, 1, 10])
def test_derivatives(dim):
    def moments(point):
        if dim is None:
            return jnp.stack(clipping.by_value(*point))
        one = clipping.by_norm(*point, dim=dim)
        return jnp.stack([*one, clipping.norm_scale(*point, dim=dim)])

    slopes, step = jax.jit(jax.jacrev(moments)), 1e-5
    for point in np.array([[0.4, 1.0, 0.8], [1.5, 0.3, 1.1]]):
        for k, shift in enumerate(step * np.eye(3)):
            if dim is None:
                ends = [np.stack(BY_VALUE(*(point + e))) for e in (shift, -shift)]
            else:
                ends = [np.hstack(by_norm(*(point + e), dim=dim)) for e in (shift, -shift)]
            np.testing.assert_allclose(
                slopes(point)[:, k], (ends[0] - ends[1]) / (2 * step), atol=1e-8
            )
    # Where there is no gradient its norm has a corner, but not the moments.
    assert np.all(np.isfinite(slopes(np.array([0.0, 1.0, 2.0]))))


@pytest.mark.usefixtures("float32")
def test_float32():
    one, scale = _by_norm(40.0, 1.0, 41.0, 50)
    assert one.mean.dtype == scale.dtype == jnp.float32
    with jax.enable_x64(True):
        wanted, _ = by_norm(40.0, 1.0, 41.0, dim=50)
    np.testing.assert_allclose(one, wanted, rtol=1e-3)
    np.testing.assert_allclose(
        BY_VALUE(1e-15, 1e-30, 2e-15).bias / 1e-15, BY_VALUE(1.0, 1.0, 2.0).bias, rtol=1e-5
    )


def test_what_is_not_finite_makes_everything_nan():
    for bad in (math.nan, math.inf):
        for one in (BY_VALUE(bad, 1.0, 1.0), by_norm(bad, 1.0, 1.0, dim=10)[0]):
            assert np.all(np.isnan(one))
    assert np.all(np.isnan(BY_VALUE(0.5, -1.0, 1.0)))
    assert np.all(np.isnan(by_norm(0.5, 1.0, -1.0, dim=10)[0]))
    assert np.isnan(by_norm(0.5, -1.0, 1.0, dim=10)[1])


def test_illegal_arguments_are_named():
    with pytest.raises(ValueError, match=r"var must be zero or more; got -1"):
        clipping.by_value(0.0, -1.0, 1.0)
    with pytest.raises(ValueError, match=r"max_value must be zero or more; got -2"):
        clipping.by_value(0.0, 1.0, -2.0)
    with pytest.raises(ValueError, match=r"max_norm must be zero or more; got -2"):
        clipping.by_norm(0.0, 1.0, -2.0, dim=2)
    with pytest.raises(ValueError, match=r"mean_norm must be zero or more; got -1"):
        clipping.norm_scale(-1.0, 1.0, 2.0, dim=2)
    with pytest.raises(ValueError, match=r"dim is 0; want a positive integer"):
        clipping.by_norm(0.0, 1.0, 1.0, dim=0)
    with pytest.raises(TypeError, match=r"dim is 2.0, a float; want a positive integer"):
        clipping.norm_scale(0.0, 1.0, 1.0, dim=2.0)  # pyright: ignore
