"""Training with a fixed kernel against the differential equation, and at its two ends."""

import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from dltheory.theory import kernel_regression

N, M = 5, 3


def problem(seed=0):
    """A positive definite kernel on training and other inputs, targets and initial outputs."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(N + M, N + M))
    k = features @ features.T / (N + M)
    y, f_train, f_test = (rng.normal(size=(n, 2)) for n in (N, N, M))
    return tuple(jnp.asarray(a) for a in (k[:N, :N], k[N:, :N], y, f_train, f_test))


run = jax.jit(
    lambda k, k_test, y, time, ridge, f_train, f_test: kernel_regression.predict(
        k, k_test, y, time=time, ridge=ridge, initial=(f_train, f_test)
    )
)


@given(st.floats(0.0, 50.0), st.floats(0.0, 2.0), st.integers(0, 5))
def test_solves_the_gradient_flow(time, ridge, seed):
    """With f - f_0 = K a the flow is a' = y - f_0 - (K + ridge) a, solved here by expm."""
    k, k_test, y, f_train, f_test = problem(seed)
    system = np.zeros((2 * N, 2 * N))
    system[:N, :N], system[:N, N:] = -(np.asarray(k) + ridge * np.eye(N)), np.eye(N)
    a = scipy.linalg.expm(system * time)[:N, N:] @ (y - f_train)
    measured = run(k, k_test, y, time, ridge, f_train, f_test)
    np.testing.assert_allclose(measured, f_test + k_test @ a, rtol=1e-9, atol=1e-9)


def test_ends_in_ridge_regression():
    k, k_test, y, f_train, f_test = problem()
    for ridge in (0.0, 0.3):
        wanted = f_test + k_test @ np.linalg.solve(k + ridge * np.eye(N), y - f_train)
        measured = run(k, k_test, y, jnp.inf, ridge, f_train, f_test)
        np.testing.assert_allclose(measured, wanted, rtol=1e-9)
    np.testing.assert_array_equal(run(k, k_test, y, 0.0, 0.0, f_train, f_test), f_test)


@given(st.floats(-12.0, -3.0), st.floats(-2.0, 14.0))
def test_small_eigenvalues_keep_their_own_clock(eigenvalue, time):
    """The share learnt of each eigenvector."""
    eigenvalue, time = 10.0**eigenvalue, 10.0**time
    learnt = run(*given_eigenvalues(eigenvalue), time, 0.0, *[jnp.zeros(2)] * 2)
    share = -float(mpmath.expm1(-mpmath.mpf(eigenvalue) * time))
    np.testing.assert_allclose(learnt[1], share, rtol=1e-12)


def given_eigenvalues(small):
    k = jnp.diag(jnp.array([1.0, small]))
    return k, k, jnp.ones(2)


def test_a_direction_without_kernel_is_never_learnt():
    v = jnp.array([1.0, 2.0, 2.0]) / 3
    k = jnp.outer(v, v)
    for time in (1.0, 1e30, jnp.inf):
        measured = kernel_regression.predict(k, k, jnp.array([3.0, 0.0, 0.0]), time=time)
        np.testing.assert_allclose(measured, v * -jnp.expm1(-time), rtol=1e-12)
    nothing = kernel_regression.predict(0 * k, k, jnp.ones(3))
    np.testing.assert_array_equal(nothing, np.zeros(3))


def test_shapes_and_derivatives():
    k, k_test, y, f_train, f_test = problem()
    times = jnp.array([[0.0, 1.0, jnp.inf]])
    many = run(k, k_test, y, times, 0.1, f_train, f_test)
    assert many.shape == (1, 3, M, 2)
    one = kernel_regression.predict(k, k_test, y[:, 0], time=times, ridge=0.1)
    assert one.shape == (1, 3, M)
    for time in (1.0, jnp.inf):
        total = lambda k, time=time: run(k, k_test, y, time, 0.0, f_train, f_test).sum()
        step = 1e-6 * jnp.eye(N)
        wanted = (total(k + step) - total(k - step)) / 2e-6
        np.testing.assert_allclose(jnp.trace(jax.jit(jax.grad(total))(k)), wanted, rtol=1e-6)


def test_nan_in_data_or_arguments_gives_nan():
    k, k_test, y, f_train, f_test = problem()
    for i in range(3):
        args = [k, k_test, y, 1.0, 0.0, f_train, f_test]
        args[i] = args[i] * jnp.nan
        assert np.all(np.isnan(run(*args)))
    assert np.all(np.isnan(run(k, k_test, y, -1.0, 0.0, f_train, f_test)))
    assert np.all(np.isnan(run(k, k_test, y, 1.0, -1.0, f_train, f_test)))


@pytest.mark.usefixtures("float32")
def test_dtype_follows_the_kernel():
    k, k_test, y = (jnp.asarray(a, jnp.float32) for a in problem()[:3])
    assert kernel_regression.predict(k, k_test, y).dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"k_train": jnp.ones((N, M))}, "k_train must be (n, n), k_test (m, n)"),
        ({"k_test": jnp.ones((N, M))}, "got (5, 5), (5, 3) and (5, 2)"),
        ({"y": jnp.ones((M, 2))}, "and y (n,) or (n, outputs); got (5, 5), (3, 5) and (3, 2)"),
        (
            {"initial": (0.0, jnp.ones((M, 2)))},
            "initial must hold outputs of the shapes (5, 2) and (3, 2); got () and (3, 2)",
        ),
        ({"time": -1.0}, "time must be zero or more; got -1.0"),
        ({"ridge": -1.0}, "ridge must be zero or more; got -1.0"),
    ],
)
def test_errors(change, text):
    k, k_test, y, _, _ = problem()
    given = {"k_train": k, "k_test": k_test, "y": y}
    with pytest.raises(ValueError, match=re.escape(text)):
        kernel_regression.predict(**given | change)
