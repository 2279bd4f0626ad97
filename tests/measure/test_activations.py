"""The profile finds from the bare callable what the catalogue states, and vice versa."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dltheory.measure import activations
from dltheory.measure.activations import Line
from dltheory.networks import activations as catalogue
from dltheory.networks import sites
from tests.tier import FULL, cases

# What interval arithmetic cannot close over all floats: h times what cancels to rounding, and
# limits approached as 1 / h.
CERTIFIED_IN_THE_WINDOW_ONLY = {
    "gelu_tanh", "silu", "mish", "softplus", "squareplus", "log_sigmoid", "softsign"
}  # fmt: skip


def agree(found, wanted):
    """Compare numbers to 1e-6, infinities exactly."""
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def rates(limits):
    return [limit and limit.rate for limit in limits]


@functools.cache
def profile(name):
    return activations.profile(catalogue.get(name))


@pytest.mark.parametrize("name", catalogue.names()[2 * (1 - FULL) :: 1 if FULL else 3])
def test_the_profile_rediscovers_the_catalogue(name):
    known = catalogue.get(name)
    found = profile(name)
    assert found.kinks == known.kinks
    assert found.smoothness == known.smoothness
    assert found.monotone is known.monotone
    assert found.homogeneous == known.homogeneous
    assert found.kink_slopes == known.kink_slopes
    assert rates(found.saturation) == rates(known.saturation)
    for side in (0, 1):
        limit, line = known.saturation[side], found.asymptotes[side]
        if limit is not None:
            agree(found.saturation[side].value, limit.value)
            agree(line, (0, limit.value))
    agree(found.range, known.range)
    agree(found.lipschitz, known.lipschitz)
    # The certificates hold the catalogue's constants.
    certified = name not in CERTIFIED_IN_THE_WINDOW_ONLY
    assert (found.assumed == ()) is certified, found.assumed
    if certified:
        stray = 1e-15
        for bracket, exact in zip((found.infimum, found.supremum), known.range, strict=True):
            if math.isfinite(exact):
                assert bracket.lower - stray <= exact <= bracket.upper + stray
                assert bracket.upper - bracket.lower < 1e-6
    if math.isfinite(known.lipschitz):
        assert found.steepest.lower - 1e-14 <= known.lipschitz <= found.steepest.upper + 1e-14
        assert found.steepest.upper - found.steepest.lower < 1e-6


def test_what_is_assumed_is_said():
    assert profile("silu").assumed == ("derivative: its supremum is certified for |h| <= 16 only",)
    grows = activations.profile(lambda h: jnp.log1p(jnp.abs(h)))
    assert grows.range == (0, math.inf)
    assert "range: taken to grow for ever, being 88.72 at the largest h" in grows.assumed
    steeper = activations.profile(lambda h: jnp.abs(h) ** 1.25)
    assert steeper.lipschitz == math.inf
    assert "derivative: taken to grow for ever, being 5.369e+09 at the largest h" in steeper.assumed


def test_asymptotes():
    lines = {
        "relu": (Line(0, 0), Line(1, 0)),
        "squareplus": (Line(0, 0), Line(1, 0)),
        "log_sigmoid": (Line(1, 0), Line(0, 0)),
        "prelu": (Line(0.25, 0), Line(1, 0)),
        "sin": (None, None),
        "relu2": (Line(0, 0), None),
    }
    for name, wanted in lines.items():
        found = profile(name).asymptotes
        for line, exact in zip(found, wanted, strict=True):
            assert (line is None) == (exact is None)
            if exact is not None:
                agree(line, exact)
    shifted = activations.profile(lambda h: 3 - jax.nn.softplus(2 * h + 1))
    agree(shifted.asymptotes, ((0, 3), (-2, 2)))


# Weights of `relu(h - k)**degree` that sum to a straight line on either side, without rounding.
WEIGHTS = {
    1: lambda _, w: w,
    2: lambda _, w: np.array([w[0], w[1], -w[0] - w[1]]),
    3: lambda k, w: w[0] * np.array([k[2] - k[1], k[0] - k[2], k[1] - k[0]]) / 4,
}


def spline(rng):
    """A random sum of powers of ReLUs at three kinks, straight at both ends, with its facts."""
    degree = int(rng.integers(1, 4))
    kinks = np.cumsum(rng.integers(5, 20, 3)) / 8 - 4
    weights = WEIGHTS[degree](kinks, rng.choice([-1, 1], 3) * rng.integers(1, 20, 3) / 8)
    if np.abs(weights).min() == 0:
        return spline(rng)
    slope, offset = rng.normal(size=2)
    fn = lambda h: slope * h + offset + weights @ jax.nn.relu(h - kinks) ** degree

    # Every piece as a polynomial; extrema at ends and at roots of derivatives.
    h = np.polynomial.Polynomial([0.0, 1.0])
    pieces, values, slopes = [slope * h + offset], [], []
    for k, w in zip(kinks, weights, strict=True):
        pieces.append(pieces[-1] + w * (h - k) ** degree)
    ends = [-np.inf, *kinks, np.inf]
    for piece, low, high in zip(pieces, ends[:-1], ends[1:], strict=True):
        for polynomial, extremes in ((piece, values), (piece.deriv(), slopes)):
            inner = polynomial.deriv().roots() if polynomial.degree() > 1 else []
            points = [low, high, *np.real(inner)]
            points = [p for p in points if np.isfinite(p) and low <= p <= high]
            extremes += [polynomial(p) for p in points]
    last = pieces[-1].deriv()(7.0)
    low = -np.inf if slope > 0 or last < 0 else min(values)
    high = np.inf if slope < 0 or last > 0 else max(values)
    return fn, kinks, degree, (low, high), np.abs(slopes).max(), min(slopes) >= 0


@pytest.mark.parametrize("seed", range(200 if FULL else 8))
def test_the_profile_of_random_piecewise_polynomials(seed):
    fn, kinks, degree, extent, lipschitz, monotone = spline(np.random.default_rng(seed))
    found = activations.profile(fn)
    agree(found.kinks, kinks)
    assert found.smoothness == degree - 1
    agree(found.range, extent)
    agree(found.lipschitz, lipschitz)
    assert found.steepest.lower <= lipschitz * (1 + 1e-12)
    assert lipschitz <= found.steepest.upper * (1 + 1e-12)
    assert found.monotone == monotone
    assert found.homogeneous is None
    assert found.saturation == (None, None)


factor = st.floats(0.25, 3).flatmap(lambda a: st.sampled_from((a, -a)))


@settings(max_examples=cases(20))
@given(st.sampled_from(catalogue.names()), factor, factor, st.floats(-2, 2), st.floats(-2, 2))
def test_the_profile_moves_with_shifts_and_scales(name, outer, inner, shift, lift):
    known = catalogue.get(name)
    found = activations.profile(lambda h: outer * known.fn(inner * h + shift) + lift)
    order = 1 if inner > 0 else -1
    agree(found.kinks, [(k - shift) / inner for k in known.kinks][::order])
    assert found.smoothness == known.smoothness
    agree(found.range, sorted(outer * end + lift for end in known.range))
    agree(found.lipschitz / abs(outer * inner), known.lipschitz)
    if outer * inner > 0:
        assert found.monotone == known.monotone
    assert rates(found.saturation) == rates(known.saturation[::order])
    for limit, base in zip(found.saturation, known.saturation[::order], strict=True):
        if base is not None:
            agree(limit.value, outer * base.value + lift)


@settings(max_examples=cases(20))
@given(st.sampled_from(("tanh", "erf", "sigmoid")), factor, st.floats(-1, 1))
def test_the_profile_of_a_squashed_function(name, inner, shift):
    """An increasing function of tanh: its range is that of the outer one between -1 and 1."""
    outer = catalogue.get(name)
    found = activations.profile(lambda h: outer.fn(1.5 * jnp.tanh(inner * h) + shift))
    ends = [float(outer.fn(shift + end)) for end in (-1.5, 1.5)]
    agree(found.range, ends)
    agree([limit.value for limit in found.saturation], ends if inner > 0 else ends[::-1])
    assert found.monotone == (inner > 0)
    h = np.linspace(-8, 8, 100_001) / abs(inner)
    slope = jax.vmap(jax.grad(lambda t: outer.fn(1.5 * t + shift)))
    steepest = np.max(np.abs(slope(np.tanh(inner * h)) * inner / np.cosh(inner * h) ** 2))
    assert steepest <= found.steepest.upper * (1 + 1e-12)
    np.testing.assert_allclose(found.lipschitz, steepest, rtol=1e-6)


def test_what_is_no_activation_is_refused():
    with pytest.raises(TypeError, match="fn must return one scalar; it returned"):
        activations.profile(lambda h: jnp.stack([h, h]))
    with pytest.raises(
        TypeError, match="fn must return real floating-point numbers; it returned int"
    ):
        activations.profile(lambda h: h.astype(int))
    with pytest.raises(
        TypeError, match="fn must return real floating-point numbers; it returned c"
    ):
        activations.profile(lambda h: jax.lax.complex(h, h))
    with pytest.raises(ValueError, match="must be a number everywhere; it is NaN at -16"):
        activations.profile(jnp.sqrt)
    with pytest.raises(NotImplementedError, match="no interval rule for the primitive 'lgamma'"):
        activations.profile(lambda h: jax.lax.lgamma(jnp.abs(h) + 1))


def test_a_derivative_that_is_none_is_refused():
    @jax.custom_jvp
    def straight_through(h):
        return jnp.tanh(h)

    straight_through.defjvp(lambda h, t: (jnp.tanh(*h), t[0]))
    with pytest.raises(ValueError, match=r"not its derivative: between .* Look for stop_gradient"):
        activations.profile(straight_through)
    with pytest.raises(ValueError, match=r"rises by .* but jax\.grad gives"):
        activations.profile(lambda h: h * jax.lax.stop_gradient(jax.nn.sigmoid(h)))


def network(params, x):
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["stack"])
    return h @ params["out"]


def network_parameters():
    rng = np.random.default_rng(0)
    shapes = {"stack": (4, 5, 5), "out": (5, 2)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


EDGES = np.linspace(-1, 1, 6)


@functools.cache
def measurement():
    """Saturation, histograms and the layers' own values, compiled once."""

    @jax.jit
    def run(params, x):
        counted = activations.saturation(network, params, x, phi="tanh", margin=0.2)
        spread = activations.histograms(network, params, x, phi="tanh", edges=EDGES)
        return counted[1:], spread, list(sites.values(network, params, x).values())

    return run


def test_saturation_and_histograms_count_what_they_say():
    params, x = network_parameters(), jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)))
    (saturated, dead, linear), spread, values = measurement()(params, x)
    for row, h in enumerate(np.asarray(h) for h in values):
        slope = 1 - np.tanh(h) ** 2
        np.testing.assert_allclose(saturated[row], np.mean(slope < 0.2), rtol=1e-12)
        np.testing.assert_allclose(dead[row], np.mean((slope < 0.2).all(0)), rtol=1e-12)
        np.testing.assert_allclose(linear[row], np.mean(slope >= 0.8), rtol=1e-12)
        counts = np.histogram(np.tanh(h), bins=EDGES)[0]
        np.testing.assert_allclose(spread[row], counts / h.size, rtol=1e-12)
    assert len(saturated) == len(spread) == len(values) == 5
    assert 0 < float(saturated[0]) < 1


def test_a_value_that_is_not_finite_makes_everything_nan():
    counted, spread, _ = measurement()(network_parameters(), jnp.full((7, 5), jnp.nan))
    assert np.isnan(np.stack(counted)).all()
    assert np.isnan(spread).all()


def test_dead_relus():
    f = lambda w, x: jax.nn.relu(x @ w["in"] + w["bias"][None]) @ w["out"]
    w = {"in": jnp.eye(3), "bias": jnp.array([0.0, -9.0, 9.0]), "out": jnp.ones((3, 1))}
    x = jnp.array([[1.0, 1.0, 1.0], [-1.0, 2.0, 3.0]])
    found = activations.saturation(f, w, x, phi="relu")
    np.testing.assert_allclose(found.saturated[0], 3 / 6)
    np.testing.assert_allclose(found.dead[0], 1 / 3)
    np.testing.assert_allclose(found.linear[0], 3 / 6)


def test_saturation_of_a_bare_callable_and_with_a_given_slope():
    f, w, x = lambda w, x: x @ w, jnp.eye(2), jnp.array([[0.0, 0.7], [1.0, 9.0]])
    bare = activations.saturation(f, w, x, phi=lambda h: 3 * jnp.tanh(h))
    named = activations.saturation(f, w, x, phi="tanh")
    assert [str(site) for site in bare.sites] == ["params"]
    np.testing.assert_array_equal(bare[1:], named[1:])
    np.testing.assert_allclose(np.concatenate(named[1:]), [1 / 4, 0, 1 / 4])
    squared = activations.saturation(f, w, x, phi="relu2", slope=2.0)
    np.testing.assert_allclose(np.concatenate(squared[1:]), [1 / 4, 0, 2 / 4])


def test_bad_questions_about_saturation_are_refused():
    params, x = network_parameters(), jnp.ones((2, 5))
    for margin in (0.0, 0.6, -1.0):
        with pytest.raises(ValueError, match=r"margin must lie in \(0, 1/2\]"):
            activations.saturation(network, params, x, phi="tanh", margin=margin)
    with pytest.raises(ValueError, match=r"'relu2' has the Lipschitz constant inf.*give slope="):
        activations.saturation(network, params, x, phi="relu2")
    with pytest.raises(ValueError, match=r"edges must be at least two numbers; got shape \(1,\)"):
        activations.histograms(network, params, x, phi="tanh", edges=jnp.zeros(1))
