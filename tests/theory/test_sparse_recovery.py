"""The cone of descent against simulation and the curve that it tends to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.theory import regression, sparse_recovery
from tests.tier import cases

SHARES = np.array([0.0, 0.03, 0.2, 0.5, 0.97, 1.0])


@jax.jit
def cones(shares):
    """All of them, and their derivatives."""
    return jax.jvp(sparse_recovery.descent_cone, (shares,), (jnp.ones_like(shares),))


def test_the_mean_is_the_number_of_measurements_on_the_curve():
    deltas = np.array([0.05, 0.3, 0.8, 0.999, 0.5, 0.1])
    rhos = np.asarray(jax.jit(regression.sparsity_transition)(deltas))
    np.testing.assert_allclose(cones(deltas * rhos)[0].mean, deltas, rtol=1e-12)


def test_derivatives_and_ends():
    cone, slope = cones(SHARES)
    high, low = (cones(SHARES + step * ((SHARES > 0) & (SHARES < 1)))[0] for step in (1e-6, -1e-6))
    for name in cone._fields:
        found, between = getattr(slope, name)[1:-1], getattr(high, name) - getattr(low, name)
        np.testing.assert_allclose(found, between[1:-1] / 2e-6, rtol=1e-6)
        ends = np.asarray(getattr(cone, name))[[0, -1]]
        np.testing.assert_array_equal(ends, [0, 1] if name == "mean" else [0, 0])


def test_the_projection_on_the_cone_by_simulation():
    """Its squared length has the mean of the volumes, and that twice over in its variance."""
    p, share, draws = 150, 0.2, cases(40000)
    rng, k = np.random.default_rng(0), 30
    g = rng.normal(size=(draws, p))
    best = np.full(draws, np.inf)
    for tau in np.linspace(0.4, 1.7, 53):
        rest = np.maximum(np.abs(g[:, k:]) - tau, 0)
        best = np.minimum(best, ((g[:, :k] - tau) ** 2).sum(1) + (rest**2).sum(1))
    cone, _ = cones(np.full(6, share))
    mean, variance, excess = (float(np.asarray(a)[0]) for a in cone)
    error = 4 * best.std(ddof=1) / np.sqrt(draws)
    assert abs(best.mean() - (p * mean - excess)) < error + 0.1
    spread = p * variance + 2 * (p * mean - excess)
    # Of a variance, the relative error is the root of two over the number of draws.
    assert abs(best.var() / spread - 1) < 4 * np.sqrt(2 / draws) + 3 / p


def test_the_chance_falls_from_one_to_zero():
    k = np.arange(6.0) * 10
    of = jax.jit(sparse_recovery.recovery_chance)
    chance = np.asarray(of(25.0, 50.0, k))
    assert chance[0] == 1
    assert np.all(np.diff(chance) <= 0)
    assert chance[-1] == 0
    np.testing.assert_array_equal(of(50.0, 50.0, k), 1)
    # In large systems on the curve it is one half.
    rho = float(regression.sparsity_transition(0.5))
    np.testing.assert_allclose(of(5e9, 1e10, rho * 5e9 * np.ones(6)), 0.5, atol=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\]; got 1.5"):
        sparse_recovery.descent_cone(1.5)
    with pytest.raises(ValueError, match=r"share must be zero or more; got -0.5"):
        sparse_recovery.descent_cone(-0.5)
    with pytest.raises(ValueError, match="k must be at most p; got k = 7 and p = 5"):
        sparse_recovery.recovery_chance(3, 5, 7)
    assert np.all(np.isnan(cones(np.full(6, -0.5))[0].variance))
    assert np.all(np.isnan(jax.jit(sparse_recovery.recovery_chance)(3.0, 5.0, np.full(6, 7.0))))
