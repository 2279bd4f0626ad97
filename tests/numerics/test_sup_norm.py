"""Brackets hold the largest value, close in on it, and say so where they cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dltheory.numerics.sup_norm import sup_norm
from tests.tier import cases


@pytest.mark.parametrize(
    ("fn", "interval", "exact"),
    [
        (lambda x: x * (1 - x), (-1.0, 2.5), 3.75),
        (lambda x: jnp.abs(x - 0.3) - x**2, (0.0, 1.0), 0.3),
        (lambda x: jnp.sqrt(x) - x, (0.0, 1.0), 0.25),
        (lambda x: jnp.exp(-x) * jnp.sin(5 * x), (0.0, 3.0), None),
        (lambda x: 1e-7 * jnp.cos(3 * x), (0.5, 2.5), 1e-7),
    ],
)
def test_closes_in_on_the_largest_value(fn, interval, exact):
    lower, upper = sup_norm(fn, *interval)
    dense = np.abs(jax.vmap(fn)(jnp.linspace(*interval, 20_001)))
    exact = dense.max() if exact is None else exact
    assert lower <= upper <= lower * (1 + 2e-9)
    np.testing.assert_allclose(lower, exact, rtol=1e-7)
    assert dense.max() <= upper * (1 + 1e-15)


def test_a_box_in_the_plane():
    lower, upper = sup_norm(lambda x: x[0] * (1 - x[0]) + jnp.abs(x[1]), [0.0, -1.0], [2.0, 0.5])
    assert lower <= 2.0 <= upper <= 2.0 * (1 + 2e-9)


def test_cuts_change_no_result():
    fn = lambda x: jnp.maximum(x, 0.25) - x**2
    plain = sup_norm(fn, 0.0, 1.0)
    np.testing.assert_allclose(sup_norm(fn, 0.0, 1.0, cuts=[0.25, 0.5]), plain, rtol=1e-9)
    np.testing.assert_allclose(sup_norm(fn, 0.0, 1.0, cuts=[-3.0, 0.7]), plain, rtol=1e-9)


@settings(max_examples=cases(100))
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_is_sound_for_small_networks(weights):
    a, b, c = np.reshape(weights, (3, 2))
    fn = lambda x: jnp.sum(c * jnp.maximum(a * x + b, 0)) - jnp.tanh(x)
    lower, upper = sup_norm(fn, -1.0, 1.0, max_boxes=3000)
    x = np.linspace(-1, 1, 4001)[:, None]
    dense = np.abs(np.maximum(a * x + b, 0) @ c - np.tanh(x[:, 0]))
    assert dense.max() <= upper + 1e-13
    assert lower <= dense.max() + 0.01
    assert upper <= lower * (1 + 1e-8) + 1e-12


def test_no_bound_is_no_certificate():
    assert sup_norm(lambda x: 1 / x, -1.0, 1.0, max_boxes=2000).upper == np.inf


def test_bad_input():
    with pytest.raises(ValueError, match="corners of a bounded box, of one shape with lower < up"):
        sup_norm(jnp.exp, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"fn is NaN at -1"):
        sup_norm(jnp.log, -1.0, 1.0, max_boxes=2000)
    with pytest.raises(NotImplementedError, match="no interval rule for the primitive 'lgamma'"):
        sup_norm(jax.scipy.special.gammaln, 1.0, 2.0)
