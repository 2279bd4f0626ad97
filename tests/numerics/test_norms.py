"""Norms at every magnitude: against exact rational arithmetic, with derivatives, and at zero."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from dltheory.numerics import norms
from tests.tier import cases

NORM, LOG_NORM = jax.jit(norms.global_norm), jax.jit(norms.log_global_norm)


def _tree(values):
    """A tree of three leaves from six numbers."""
    a = jnp.asarray(values)
    return {"w": a[:4].reshape(2, 2), "b": [a[4], a[5:]]}


def _log_exact(values):
    """The logarithm of the norm from the exact sum of squares, of any magnitude."""
    total = sum(Fraction(float(v)) ** 2 for v in values)
    return (math.log(total.numerator) - math.log(total.denominator)) / 2


LARGE = math.log10(np.finfo(np.float32).max / 3)
EXPONENT = st.floats(-37.5, LARGE)


@settings(max_examples=cases(500))
@given(st.lists(EXPONENT, min_size=6, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_float32_norms_over_the_whole_range(exponents, signs):
    values = np.float32([(-1) ** s * 10**e for s, e in zip(signs, exponents, strict=True)])
    exact = _log_exact(values)
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(
        math.log(NORM(_tree(values))), exact, rtol=0, atol=4 * eps, err_msg=str(values)
    )
    np.testing.assert_allclose(LOG_NORM(_tree(values)), exact, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("entry", [1.2e-38, 1e-22, 1e20, 1e38, 1.6e38])
def test_where_the_sum_of_squares_fails(entry):
    a = jnp.full(4, entry, jnp.float32)
    naive = jnp.sqrt(jnp.sum(a**2))
    assert naive == 0 or jnp.isinf(naive)
    np.testing.assert_allclose(norms.global_norm(a), 2 * a[0], rtol=1e-6)
    np.testing.assert_allclose(norms.log_global_norm(a), math.log(2 * entry), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_gradients_are_exact_at_every_scale(scale):
    unit = jnp.array([1.0, -2.0, 2.0, 4.0, 0.0, 5.0], jnp.float32)
    tree = _tree(unit * jnp.float32(scale))
    length = math.sqrt(50)
    want = _tree(unit / jnp.float32(length))
    for got, wanted in zip(
        jax.tree.leaves(jax.grad(norms.global_norm)(tree)), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    for got, wanted in zip(
        jax.tree.leaves(jax.grad(norms.log_global_norm)(tree)), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_allclose(got * scale * length, wanted, rtol=1e-6)


def test_derivatives_of_both_modes_and_orders():
    for norm in (NORM, LOG_NORM):
        check_grads(norm, (jnp.arange(1.0, 7),), order=2)


@pytest.mark.parametrize(
    "tree", [{"w": jnp.zeros((2, 2)), "b": jnp.zeros(0)}, jnp.zeros(3), [-jnp.zeros(())]]
)
def test_zero(tree):
    assert norms.global_norm(tree) == 0
    assert norms.log_global_norm(tree) == -math.inf
    for norm in (norms.global_norm, norms.log_global_norm):
        gradient = jax.tree.leaves(jax.grad(norm)(tree))
        assert not any(np.any(leaf) for leaf in gradient)


@pytest.mark.parametrize("tree", [{}, [], None, jnp.zeros((0, 3))])
def test_no_entries(tree):
    assert norms.global_norm(tree) == 0
    assert norms.log_global_norm(tree) == -math.inf
    assert norms.global_norm(tree).dtype == jnp.float64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_everything_nan(bad):
    tree = {"w": jnp.ones(3), "b": jnp.array([0.0, bad])}
    for norm in (norms.global_norm, norms.log_global_norm):
        value, gradient = jax.value_and_grad(norm)(tree)
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves((value, gradient)))


def test_dtypes():
    halves = [jnp.full(9, 300, jnp.float16), jnp.full(7, 300, jnp.bfloat16)]
    assert norms.global_norm(halves).dtype == jnp.float32
    np.testing.assert_allclose(norms.global_norm(halves), 1200, rtol=1e-6)
    # In the wide dtype already while summing: float32 would lose the second part.
    mixed = [jnp.ones(1, jnp.float32), jnp.array([1e-5])]
    assert norms.global_norm(mixed).dtype == jnp.float64
    np.testing.assert_allclose(norms.global_norm(mixed) - 1, 5e-11, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_complex_entries_count_by_their_magnitude(scale):
    a = jnp.array([3 + 4j, -12j], jnp.complex64) * jnp.asarray(scale, jnp.complex64)
    assert norms.global_norm(a).dtype == jnp.float32
    np.testing.assert_allclose(norms.global_norm(a), 13 * scale, rtol=1e-6)


def test_vmap_is_row_by_row():
    a = jax.random.normal(jax.random.key(0), (5, 7)) * jnp.logspace(-200, 200, 5)[:, None]
    np.testing.assert_allclose(
        jax.vmap(norms.global_norm)(a), [norms.global_norm(row) for row in a], rtol=1e-14
    )


def test_integers_are_refused_by_name():
    with pytest.raises(TypeError, match=r"tree\['n'\]\[0\] holds int32; want floating-point"):
        norms.global_norm({"w": jnp.ones(2), "n": [jnp.ones(2, jnp.int32)]})
    with pytest.raises(TypeError, match="tree holds bool"):
        norms.log_global_norm(jnp.array([True]))
