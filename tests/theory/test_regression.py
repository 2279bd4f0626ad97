"""Ridge and the lasso on a given design, and dropout of linear models, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.linear_model import Lasso

from dltheory.theory import dropout, regression, regularization
from tests.tier import cases

ROWS, COLUMNS = 12, 6
LAMS = np.array([0.0, 0.02, 0.3, 5.0])


@jax.jit
def solve(x, y):
    """Solutions for all penalties, how far they are from optimal, and a derivative along y."""
    one = jnp.ones(())
    b, slope = jax.jvp(lambda s: regression.lasso(x, s * y, LAMS), (one,), (one,))
    violation = jax.vmap(lambda b, lam: regression.lasso_violation(x, y, b, lam))(b, LAMS)
    return b, violation, slope, regression.ridge(x, y, LAMS)


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, COLUMNS)) + scale * rng.normal(size=(ROWS, 1))
    return x, x @ rng.normal(size=COLUMNS) * rng.integers(0, 2) + rng.normal(size=ROWS)


# --- ridge -----------------------------------------------------------------------------------


def test_ridge_solves_its_equations_along_the_path():
    x, y = draw(0)
    for b, lam in zip(np.asarray(solve(x, y)[3]), LAMS, strict=True):
        gram = x.T @ x / ROWS + lam * np.eye(COLUMNS)
        np.testing.assert_allclose(b, np.linalg.solve(gram, x.T @ y / ROWS), rtol=1e-10)
    s = np.linalg.eigvalsh(x.T @ x / ROWS)
    want = [np.trace(x @ np.linalg.solve(x.T @ x + ROWS * lam * np.eye(6), x.T)) for lam in LAMS]
    s = np.append(s, 0.0)  # counts for nothing, without a penalty too
    freedom = jax.jit(regression.degrees_of_freedom)(s, LAMS)
    np.testing.assert_allclose(freedom, want, rtol=1e-10)


def test_ridge_without_a_penalty_has_minimum_norm():
    x, y = draw(1)
    x[:, 3] = x[:, 2]  # a singular design
    b = np.asarray(solve(x, y)[3])[0]
    np.testing.assert_allclose(b, np.linalg.pinv(x) @ y, rtol=1e-9)


# --- the lasso -------------------------------------------------------------------------------


@settings(max_examples=cases(100))
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 30.0]))
def test_the_lasso_satisfies_its_optimality_conditions(seed, scale):
    x, y = draw(seed, scale)
    b, violation, *_ = map(np.asarray, solve(x, y))
    assert np.max(violation) < 1e-8 * max(1, np.max(np.abs(x.T @ y)) / ROWS)
    zero = np.max(np.abs(x.T @ y)) / ROWS <= LAMS
    np.testing.assert_array_equal(np.all(b == 0, axis=1), zero)


def test_the_lasso_agrees_with_another_solver():
    x, y = draw(2)
    b, _, slope, _ = map(np.asarray, solve(x, y))
    for found, lam in zip(b[1:], LAMS[1:], strict=True):
        other = Lasso(alpha=float(lam), fit_intercept=False, tol=1e-14, max_iter=10**6).fit(x, y)
        np.testing.assert_allclose(found, other.coef_, atol=1e-8)
        np.testing.assert_array_equal(found == 0, other.coef_ == 0)
    high, low = (
        Lasso(alpha=0.3, fit_intercept=False, tol=1e-15, max_iter=10**6).fit(x, s * y).coef_
        for s in (1 + 1e-4, 1 - 1e-4)
    )
    np.testing.assert_allclose(slope[2], (high - low) / 2e-4, atol=1e-6)


def test_the_lasso_on_dependent_columns_and_on_what_is_not_finite():
    x, y = draw(3)
    x[:, 3], x[:, 5] = x[:, 2], 0
    b, violation, *_ = map(np.asarray, solve(x, y))
    assert np.max(violation) < 1e-8
    assert np.all(b[:, 5] == 0)
    y[0] = np.nan
    assert np.all(np.isnan(solve(x, y)[0]))


def test_the_transition_is_where_the_minimax_risk_equals_the_measurements():
    """Against the statistical dimension of the descent cone of the norm, by minimisation."""
    deltas = np.array([0.05, 0.3, 0.8])
    rhos = jax.jit(regression.sparsity_transition)(np.append(deltas, [0, 1]))
    np.testing.assert_array_equal(rhos[3:], [0, 1])
    tail = lambda t: 2 * ((1 + t * t) * stats.norm.sf(t) - t * stats.norm.pdf(t))
    for delta, rho in zip(deltas, rhos[:3], strict=True):
        share = delta * float(rho)
        dimension = lambda t, share=share: share * (1 + t * t) + (1 - share) * tail(t)
        found = optimize.minimize_scalar(dimension, bounds=(0, 6), options={"xatol": 1e-9})
        np.testing.assert_allclose(found.fun, delta, rtol=1e-10)


# --- dropout ---------------------------------------------------------------------------------

X, Y = draw(4)
W = np.linspace(-1, 2, COLUMNS)


SQUARE = lambda z: z**2 / 2


@jax.jit
def of_dropout(keep):
    """The marginal loss twice, its slope at its minimum, and the penalty in three ways."""
    loss = lambda mask: jnp.sum((Y - X @ (mask * W)) ** 2)
    closed = lambda w: dropout.marginal_loss(X, Y, w, keep)
    return (
        dropout.mask_mean(loss, COLUMNS, keep),
        closed(W),
        jax.grad(closed)(dropout.minimizer(X, Y, keep)),
        dropout.penalty(SQUARE, X, W, keep),
        dropout.quadratic_penalty(SQUARE, X, W, keep),
        regularization.dropout_penalty(X, W, keep),
    )


@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_dropout_of_inputs_is_an_adaptive_ridge(keep):
    enumerated, closed, slope, exact, second_order, penalty = of_dropout(keep)
    np.testing.assert_allclose(enumerated, closed, rtol=1e-12)
    np.testing.assert_allclose(slope, 0, atol=1e-11)
    np.testing.assert_allclose([2 * exact, 2 * second_order], [penalty] * 2, rtol=1e-12, atol=1e-12)
    assert (penalty == 0) == (keep == 1)


def test_dropout_of_hidden_units_is_a_nuclear_norm():
    rng, keep = np.random.default_rng(5), 0.4
    u, v, y = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), rng.normal(size=(3, 5))
    loss = lambda mask: jnp.sum((y - (u * mask[None, :]) @ v.T) ** 2)
    factor_penalty = jax.jit(dropout.factor_penalty)
    extra = jax.jit(lambda: dropout.mask_mean(loss, 4, keep))() - np.sum((y - u @ v.T) ** 2)
    np.testing.assert_allclose(factor_penalty(u, v, keep), extra, rtol=1e-12)
    # Factors whose columns contribute equally, by a Hadamard rotation, reach the least penalty.
    least = float(jax.jit(lambda y: dropout.nuclear_penalty(y, 4, keep))(u @ v.T))
    left, s, right = np.linalg.svd(u @ v.T, full_matrices=False)
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]) / 2
    equal = left * np.sqrt(s) @ hadamard, right.T * np.sqrt(s) @ hadamard
    np.testing.assert_allclose(equal[0] @ equal[1].T, u @ v.T, rtol=1e-12)
    np.testing.assert_allclose(factor_penalty(*equal, keep), least, rtol=1e-12)
    for _ in range(cases(100)):
        mix = rng.normal(size=(4, 4))
        other = factor_penalty(u @ mix, v @ np.linalg.inv(mix).T, keep)
        assert other >= least * (1 - 1e-12)


def test_the_product_learnt_under_dropout_is_a_minimum():
    rng, keep = np.random.default_rng(6), 0.3
    target = rng.normal(size=(3, 5)) * np.array([[3.0], [1.0], [0.05]])
    shrink = jax.jit(lambda keep: dropout.nuclear_shrinkage(target, 4, keep))
    best = shrink(keep)
    rest, nuclear = target - best, np.linalg.svd(best, compute_uv=False).sum()
    assert 0 < np.linalg.matrix_rank(best, tol=1e-10) < 3
    # The rest is a subgradient of the penalty, which is convex: its norm, and that it is reached.
    slope = 0.7 / (0.3 * 4) * nuclear
    np.testing.assert_allclose(np.linalg.norm(rest, 2), slope, rtol=1e-12)
    np.testing.assert_allclose(np.sum(rest * best), slope * nuclear, rtol=1e-12)
    np.testing.assert_allclose(shrink(1.0), target, atol=1e-12)


# --- errors ----------------------------------------------------------------------------------


def test_bad_input():
    with pytest.raises(ValueError, match="lam must be zero or more; got -1"):
        regression.lasso(X, Y, -1.0)
    with pytest.raises(ValueError, match="lam must be zero or more; got -1"):
        regression.ridge(X, Y, -1.0)
    with pytest.raises(ValueError, match=r"x has shape \(0, 2\); want at least one example"):
        regression.ridge(np.zeros((0, 2)), np.zeros(0), 1.0)
    with pytest.raises(
        ValueError, match=r"x must be \(n, p\) and y \(n,\); got \(12, 6\) and \(3,"
    ):
        regression.lasso(X, np.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"b must be \(6,\) and lam a scalar; got \(2,\) and \(\)"):
        regression.lasso_violation(X, Y, np.zeros(2), 1.0)
    with pytest.raises(ValueError, match=r"delta must be in \[0, 1\]; got 1.5"):
        regression.sparsity_transition(1.5)
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\]; got 0"):
        dropout.minimizer(X, Y, 0.0)
    with pytest.raises(ValueError, match="size is 30; want at most 20: there are"):
        dropout.mask_mean(jnp.sum, 30, 0.5)
    with pytest.raises(ValueError, match=r"u must be \(m, width\) and v \(n, width\); got"):
        dropout.factor_penalty(np.ones((2, 3)), np.ones((2, 4)), 0.5)
    with pytest.raises(ValueError, match=r"target must be a matrix \(m, n\); it has shape \(3,\)"):
        dropout.nuclear_shrinkage(np.ones(3), 2, 0.5)
    assert jnp.isnan(jax.jit(regression.sparsity_transition)(1.5))
