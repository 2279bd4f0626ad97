"""Lanczos' recurrence against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.numerics import lanczos

RNG = np.random.default_rng(0)
N = 12
SQUARE = RNG.normal(size=(N, N))
MATRIX, START = SQUARE + SQUARE.T, RNG.normal(size=N)
run = jax.jit(
    lambda matrix, start, steps: lanczos.tridiagonal(lambda v: matrix @ v, start, steps),
    static_argnums=2,
)


def dense(diagonal, beside):
    return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


def test_all_steps_give_all_eigenvalues_and_moments():
    tri = dense(*run(MATRIX, START, N))
    np.testing.assert_allclose(np.linalg.eigvalsh(tri), np.linalg.eigvalsh(MATRIX), rtol=1e-10)
    unit = START / np.linalg.norm(START)
    powers = lambda matrix, v, k: v @ np.linalg.matrix_power(matrix, k) @ v
    for k in range(1, 8):
        np.testing.assert_allclose(powers(tri, np.eye(N)[0], k), powers(MATRIX, unit, k), rtol=1e-9)


def test_vectors_stay_orthogonal_where_plain_recurrence_loses_them():
    """One eigenvalue far out: without care it would be found again and again."""
    scale = np.append(np.linspace(0.0, 1.0, 199), 1e6)
    diagonal, beside = run(np.diag(scale), np.ones(200), 60)
    found = np.linalg.eigvalsh(dense(diagonal, beside))
    assert (found > 1e5).sum() == 1
    np.testing.assert_allclose(found[-1], 1e6, rtol=1e-12)
    assert found[-2] <= 1 + 1e-9


def test_an_invariant_space_ends_it():
    diagonal, beside = run(2 * np.eye(N), np.eye(N)[0], 3)
    assert diagonal[0] == 2
    assert beside[0] == 0
    assert np.isnan(diagonal[1])


def test_a_multiple_eigenvalue_leaves_no_second_copy_of_weight():
    diagonal, beside = run(np.diag(np.repeat([1.0, 3.0], N // 2)), jnp.asarray(START), 4)
    np.testing.assert_allclose(np.linalg.eigvalsh(dense(diagonal, beside)[:2, :2]), [1, 3])
    assert abs(beside[1]) < 1e-14
