"""Piecewise linear functions against smooth ones: brackets on simplices are tight and sound."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dltheory.numerics import double_double
from dltheory.numerics.simplex_sup import sup_gap
from tests.tier import cases

SQUARE = np.zeros(2), np.ones(2)


def test_pairs_hold_what_fractions_do():
    rng = np.random.default_rng(0)
    high = rng.normal(size=(2, 50)) * 10.0 ** rng.integers(-6, 6, (2, 50))
    pairs = [(h, h * 2.0**-55 * rng.uniform(-1, 1, 50)) for h in high]
    exact = lambda pair, i: Fraction(float(pair[0][i])) + Fraction(float(pair[1][i]))
    for operation, name in (
        (double_double.add, "__add__"),
        (double_double.multiply, "__mul__"),
        (double_double.divide, "__truediv__"),
    ):
        found = operation(*pairs)
        for i in range(50):
            x, y = (exact(pair, i) for pair in pairs)
            wanted = getattr(x, name)(y)
            size = abs(x) + abs(y) if name == "__add__" else abs(wanted)
            assert abs(exact(found, i) - wanted) <= size * Fraction(double_double.UNIT), name


def test_a_quadratic_in_the_plane_is_exact():
    """Concave, saddle-shaped and degenerate ones, against planes: the maxima are known."""
    for form, plane, exact in (
        (lambda x: -((x[0] - 0.3) ** 2) - (x[1] - 0.6) ** 2, lambda x: 0 * x[0] - 1.0, 1.0),
        (lambda x: x[0] * x[1], lambda x: 0.5 * (x[0] + x[1]) - 0.25, 0.25),
        (lambda x: x[0] * (1 - x[0]), lambda x: 0 * x[1], 0.25),
    ):
        lower, upper = sup_gap(form, plane, *SQUARE)
        np.testing.assert_allclose([lower, upper], exact, rtol=1e-9)
        assert lower <= upper


def test_three_dimensions():
    f = lambda x: jnp.sum(x * (1 - x))
    kinked = lambda x: jnp.minimum(jnp.abs(x[0] - x[1]), 0.25)
    lower, upper = sup_gap(f, kinked, np.zeros(3), np.ones(3), rtol=1e-3)
    assert lower <= 0.75 + 1e-14
    assert 0.75 <= upper <= lower * (1 + 1.1e-3)


TARGETS = [
    lambda x: jnp.sin(3 * x[0]) * x[1],
    lambda x: jnp.sqrt(jnp.abs(x[0] - 0.2)) + x[1] ** 2,
    lambda x: jnp.maximum(jnp.exp(x[0] - x[1]), 1.0),
]
GRID = np.stack(np.meshgrid(*[np.linspace(-1, 1, 161)] * 2), -1).reshape(-1, 2)


@settings(max_examples=cases(40))
@given(
    st.integers(0, len(TARGETS) - 1),
    st.booleans(),
    st.lists(st.floats(-2, 2), min_size=24, max_size=24),
)
def test_is_sound_in_the_plane(target, chosen, weights):
    """Two hidden layers, by maxima or by choices, on a grid."""
    weights = np.array(weights)
    w1, w2, w3 = (weights[i : i + 6].reshape(2, 3) for i in (0, 6, 12))
    last = weights[18:21]

    def net(x, np_=jnp):
        bend = (lambda h: np_.where(h > 0, h, 0.1 * h)) if chosen else (lambda h: np_.abs(h))
        hidden = bend(x @ w1 + weights[None, 21:24])
        return np_.maximum(bend(hidden @ w2.T) @ w3, 0) @ last

    f = TARGETS[target]
    flat = lambda x: net(x[None])[0]
    lower, upper = sup_gap(f, flat, [-1.0, -1.0], [1.0, 1.0], rtol=0.05, max_simplices=4000)
    dense = np.abs(net(GRID, np) - np.asarray(jax.vmap(f)(GRID))).max()
    assert dense <= upper * (1 + 1e-12) + 1e-12
    slope = 1 + np.abs(w1).sum() * np.abs(w2).sum() * np.abs(w3).sum() * np.abs(last).sum()
    assert lower <= dense + 0.0125 * slope + 0.2
    assert lower <= upper


def test_bad_programs():
    with pytest.raises(NotImplementedError, match="'tanh' is not piecewise affine"):
        sup_gap(lambda x: x[0], lambda x: jnp.tanh(x[0]), [0.0], [1.0])
    with pytest.raises(NotImplementedError, match="no interval rule for the primitive 'lgamma'"):
        sup_gap(lambda x: jax.scipy.special.gammaln(x[0]), lambda x: x[0], [1.0], [2.0])
    jump = sup_gap(lambda x: jnp.where(x[0] < 0.3, 0.0, 1.0), lambda x: 0 * x[0], [0.0], [1.0])
    np.testing.assert_allclose(jump, 1, rtol=1e-9)
    assert sup_gap(lambda x: jnp.log(x[0]), lambda x: x[0], [-1.0], [1.0]).upper == np.inf
