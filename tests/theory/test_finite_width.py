"""Lyapunov exponents against the facts, mpmath, and the decomposition that they come from."""

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
