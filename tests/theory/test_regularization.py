"""Regularisation against the facts, mpmath, and brute force; every `reg.*` fact is called here."""

import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from dltheory.theory import (
    capacity,
    dropout,
    early_stopping,
    generalization,
    pac_bayes,
    random_features,
    regression,
    regularization,
    weight_decay,
)
from tests.facts import FACTS, assert_agrees
from tests.tier import FULL, cases

FACT_IDS = [i for i in FACTS if i.startswith("reg.")]
NOISE = {"r2": 1.0, "sigma2": 0.25}
POINTS = 24  # one shape is one compilation


def design(fact_id):
    given = FACTS[fact_id]["inputs"]
    return np.array(given["X"], float), np.array(given.get("y", 0), float)


def optimal_ridge():
    penalty = regularization.optimal_penalty(0.5, **NOISE)
    return penalty, regularization.ridge_risk(0.5, penalty, **NOISE)


def optimal_gamma():
    gamma = regularization.optimal_gamma(**NOISE)
    return gamma, regularization.min_norm_risk(gamma, **NOISE)


def exact_risk():
    parts = [{"r2": 1.0, "sigma2": 0.0}, {"r2": 0.0, "sigma2": 0.25}]
    return [regularization.exact_min_norm_risk(50, 100, **part) for part in parts]


ridge_risk = jax.jit(regularization.ridge_risk)
flow_risk = jax.jit(early_stopping.gradient_flow_risk)


def spread(*values):
    """Each value in the one shape of these tests."""
    return [np.resize(np.asarray(value, float), POINTS) for value in values]


@jax.jit
def stop(gamma, r2, sigma2):
    """The best times, and their derivatives with respect to gamma."""
    time = lambda gamma: early_stopping.optimal_time(gamma, r2=r2, sigma2=sigma2)
    return jax.jvp(time, (gamma,), (jnp.ones_like(gamma),))


def stopped(gamma):
    (gamma,) = spread(float(gamma))
    t, _ = stop(gamma, 1.0, 0.25)
    risk = flow_risk(gamma, t, **NOISE)
    best = ridge_risk(gamma, gamma / 4, **NOISE)
    return [x[0] for x in (t, risk, risk / best)]


@jax.jit
def feature_risk(psi1, psi2, lam, r2, sigma2):
    """The risk, and its derivative with respect to the penalty."""
    risk = lambda lam: random_features.risk("relu", psi1, psi2, lam, r2=r2, sigma2=sigma2)
    return jax.jvp(risk, (lam,), (jnp.ones_like(lam),))


def random_feature_risk(*sizes):
    parts = [(1.0, 0.25), (1.0, 0.0), (0.0, 1.0)]
    sizes = spread(*map(float, sizes))
    return [feature_risk(*sizes, *part)[0][0] for part in parts]


def logistic():
    x, w = jnp.array([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]]), jnp.array([0.5, -1.0])
    both = dropout.penalty, dropout.quadratic_penalty
    return jax.jit(lambda: [penalty(jax.nn.softplus, x, w, 0.5) for penalty in both])()


minimizer = jax.jit(dropout.minimizer)


def rademacher(ball, bound):
    x, _ = design("reg.rad.linear")
    return capacity.rademacher_exact(x, 1.0, ball=ball), bound(x, 1.0)


def pac_bayes_bounds(risk, kl, n):
    of = float(risk), float(kl), int(n), FACTS[f"reg.pacbayes.{risk}.{kl}.{n}"]["inputs"]["delta"]
    bounds = generalization.pac_bayes_kl, pac_bayes.mcallester, pac_bayes.quadratic
    complexity = generalization.pac_bayes_complexity(*of[1:])
    return [complexity, *jax.jit(lambda: [bound(*of).value for bound in bounds])()]


# The pattern of an id, and what to call with its groups.
TABLE = [
    (r"reg\.gf\.const", early_stopping.flow_bound),
    (r"reg\.gf\.opt\.g(.+)", stopped),
    (r"reg\.minnorm\.g(.+)", lambda g: regularization.min_norm_risk(float(g), **NOISE)),
    (r"reg\.minnorm\.optgamma", optimal_gamma),
    (r"reg\.minnorm\.exact\.50\.100", exact_risk),
    (
        r"reg\.ridge\.g(.+)\.l(.+)",
        lambda g, lam: regularization.ridge_risk(float(g), float(lam), **NOISE),
    ),
    (r"reg\.ridge\.opt\.g0\.5", optimal_ridge),
    (r"reg\.ridge\.example", lambda: jax.jit(regression.ridge)(*design("reg.lasso.0.6"), 0.2)),
    (
        r"reg\.df",
        lambda: regression.degrees_of_freedom(jnp.array([4, 1, 0.25, 0.01]), 0.1),
    ),
    (r"reg\.rf\.([^.]+)\.([^.]+)\.(.+)", random_feature_risk),
    (
        r"reg\.dropout\.linreg\.(.+)",
        lambda keep: minimizer(*design(f"reg.dropout.linreg.{keep}"), float(keep)),
    ),
    (r"reg\.dropout\.logistic", logistic),
    (r"reg\.soft", lambda: regularization.soft_threshold(-2.3, 0.7) / (1 + 0.5)),
    (r"reg\.lasso\.lmax", lambda: regression.lasso_lambda_max(*design("reg.lasso.lmax"))),
    (r"reg\.lasso\.0\.6", lambda: jax.jit(regression.lasso)(*design("reg.lasso.0.6"), 0.6)),
    (r"reg\.wd\.equilibrium", lambda: weight_decay.equilibrium(0.1, 0.01, 1.0)),
    (r"reg\.rad\.linear", lambda: rademacher("l2", generalization.rademacher_linear)),
    (r"reg\.rad\.l1", lambda: rademacher("l1", capacity.rademacher_l1)),
    (r"reg\.rad\.orth", lambda: capacity.rademacher_exact(jnp.ones((10, 1)), 1.0)),
    (r"reg\.pacbayes\.(0|0\.1)\.(\d+)\.(\d+)", pac_bayes_bounds),
    (
        r"reg\.pacbayes\.gausskl",
        lambda: pac_bayes.gaussian_kl(4.0, 100, var=0.01, prior_var=0.04),
    ),
    (r"reg\.sauer", lambda: (capacity.growth_bound(20, 3), capacity.halfspaces(20, 2))),
    (r"reg\.vc", lambda: capacity.network_dimension(10**6, 20)),
    (r"reg\.hoeffding", lambda: capacity.finite_class_gap(np.log(1e6), 10**4, 0.05)),
]
CALLS = {
    i: (call, match.groups())
    for i in FACT_IDS
    for pattern, call in TABLE
    if (match := re.fullmatch(pattern, i))
}
# The direction of the largest margin is where training ends, and no closed form gives it.
UNCOVERED = {"reg.implicit.maxmargin"}


# In the quick tier those of the hardest functions.
QUICK = r"reg\.(gf\.opt\.g0\.5|rf\..*|sauer)"


@pytest.mark.parametrize("fact_id", [i for i in CALLS if FULL or re.fullmatch(QUICK, i)])
def test_agrees_with_the_facts(fact_id):
    call, groups = CALLS[fact_id]
    measured = call(*groups)
    if isinstance(measured, list | tuple):
        measured = np.array([float(value) for value in measured])
    assert_agrees(fact_id, measured)


def test_the_facts_are_covered():
    assert set(FACT_IDS) - set(CALLS) == UNCOVERED
    assert len(CALLS) >= 0.95 * len(FACT_IDS)


# --- shrinkage and risks ---------------------------------------------------------------------


def marchenko_pastur(f, gamma):
    """The mean of f over the law with all of its mass, by mpmath's own quadrature."""
    low, high = (1 - mpmath.sqrt(gamma)) ** 2, (1 + mpmath.sqrt(gamma)) ** 2
    density = lambda s: mpmath.sqrt(abs((high - s) * (s - low))) / (2 * mpmath.pi * gamma * s)
    at_zero = max(0, 1 - 1 / gamma)
    return at_zero * (f(mpmath.mpf(0)) if at_zero else 0) + mpmath.quad(
        lambda s: f(s) * density(s), [low, (low + high) / 2, high]
    )


@pytest.mark.parametrize(("gamma", "lam", "t"), [(0.3, 0.2, 2.0), (1.7, 1e-3, 40.0), (1.0, 1, 0.5)])
def test_risks_are_integrals_over_the_spectrum(gamma, lam, t):
    r2, sigma2 = 1.3, 0.4
    ridge = lambda s: (r2 * lam**2 + sigma2 * gamma * s) / (s + lam) ** 2
    clock = lambda s: (1 - mpmath.exp(-t * s)) ** 2 / s if s else 0
    flow = lambda s: r2 * mpmath.exp(-2 * t * s) + sigma2 * gamma * clock(s)
    given = {"r2": r2, "sigma2": sigma2}
    for risk, f, strength in ((ridge_risk, ridge, lam), (flow_risk, flow, t)):
        with mpmath.workdps(30):
            want = float(marchenko_pastur(f, mpmath.mpf(gamma)))
        measured = risk(*spread(gamma, strength), **given)[0]
        np.testing.assert_allclose(measured, want, rtol=1e-12)


def test_the_ends_of_the_path_of_ridge():
    gammas = np.array([0.0, 0.5, 0.999, 1.001, 2.0, np.inf])
    given = {"r2": 2.0, "sigma2": 0.3}
    tiny = ridge_risk(*spread(gammas, 1e-13), **given)[: len(gammas)]
    over = gammas > 1
    with np.errstate(all="ignore"):
        above, below = 2 * (1 - 1 / gammas) + 0.3 / (gammas - 1), 0.3 * gammas / (1 - gammas)
    want = np.where(over, above, below)
    min_norm = jax.jit(regularization.min_norm_risk)
    found = min_norm(*spread([*gammas, 1.0]), **given)
    np.testing.assert_allclose(found[:7], [*want, jnp.inf], rtol=1e-10)
    np.testing.assert_allclose(tiny, want, rtol=1e-6, atol=1e-20)
    np.testing.assert_array_equal(ridge_risk(*spread(gammas, jnp.inf), **given), 2.0)
    np.testing.assert_array_equal(min_norm(*spread(1.0), r2=2.0, sigma2=0.0), 0)
    ended = flow_risk(*spread(gammas[1:5], jnp.inf), **given)[:4]
    np.testing.assert_allclose(ended, want[1:5], rtol=1e-10)
    # The exact risk of a finite design tends to the asymptotic one.
    exact = [regularization.exact_min_norm_risk(10**6, p, **given) for p in (5 * 10**5, 2 * 10**6)]
    np.testing.assert_allclose(exact, want[[1, 4]], rtol=1e-5)
    assert regularization.exact_min_norm_risk(10, 11, **given) == jnp.inf


def test_measured_risks_over_a_grid_of_sizes_and_penalties():
    """On Gaussian designs, within four standard errors and terms of order one over the size."""
    n, gammas, lams = 100, np.array([0.3, 0.8, 1.25, 3.0]), np.array([0.03, 0.1, 0.4, 1.5])
    rng, given = np.random.default_rng(0), {"r2": 1.5, "sigma2": 0.5}
    for gamma in gammas:
        p, risks = round(gamma * n), []
        for _ in range(cases(300)):
            x, noise = rng.normal(size=(n, p)), np.sqrt(0.5) * rng.normal(size=n)
            b = np.full(p, np.sqrt(1.5 / p))
            u, s, vt = np.linalg.svd(x, full_matrices=False)
            shares = s / (s**2 + n * lams[:, None])
            found = (shares * (u.T @ (x @ b + noise))) @ vt
            risks.append(np.sum((found - b) ** 2, axis=1))
        want = np.asarray(ridge_risk(*spread(gamma, lams), **given))[: len(lams)]
        error = 4 * np.std(risks, axis=0, ddof=1) / np.sqrt(len(risks)) + 2 * want / n
        assert np.all(np.abs(np.mean(risks, axis=0) - want) < error)


def test_the_measured_risk_of_random_features_peaks_between_0_95_and_1_05():
    n, d, ratios = 80, 40, np.array([0.5, 0.8, 0.95, 1.0, 1.05, 1.25, 2.0])
    rng, risks = np.random.default_rng(1), []
    sphere = lambda shape: (lambda g: g / np.linalg.norm(g, axis=1, keepdims=True))(
        rng.normal(size=shape)
    )
    for _ in range(cases(300)):
        w, x, new = sphere((2 * n, d)), sphere((n, d)), sphere((200, d))
        z, test = (np.maximum(np.sqrt(d) * a @ w.T, 0) for a in (x, new))
        y = np.sqrt(d) * x[:, 0] + 0.5 * rng.normal(size=n)
        fits = (
            test[:, :p] @ np.linalg.lstsq(z[:, :p], y, rcond=None)[0]
            for p in np.round(ratios * n).astype(int)
        )
        risks.append([np.mean((fit - np.sqrt(d) * new[:, 0]) ** 2) for fit in fits])
    median = np.median(risks, axis=0)
    assert 0.95 <= ratios[np.argmax(median)] <= 1.05
    assert median[-1] < median[0]


def test_the_best_penalty_and_the_best_time_are_stationary():
    given = {"r2": 0.7, "sigma2": 0.2}
    gammas = spread([0.4, 3.0])[0]
    t, slope = map(np.asarray, stop(gammas, 0.7, 0.2))
    lams = np.asarray(jax.jit(regularization.optimal_penalty)(gammas, **given))
    for risk, best in ((flow_risk, t), (ridge_risk, lams)):
        at, high, low = (
            np.asarray(risk(gammas, best * (1 + step), **given)) for step in (0, 1e-4, -1e-4)
        )
        assert np.all((at < high) & (at < low))
        np.testing.assert_allclose((high - low) / 2e-4, 0, atol=1e-8)
    # The best ridge is the best of all.
    assert np.all(
        np.asarray(flow_risk(gammas, t, **given)) > np.asarray(ridge_risk(gammas, lams, **given))
    )
    high, low = (np.asarray(stop(gammas + step, 0.7, 0.2)[0]) for step in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-7)
    np.testing.assert_array_equal(stop(gammas, 1.0, 0.0)[0], np.inf)
    np.testing.assert_array_equal(stop(gammas, 0.0, 1.0)[0], 0)


def test_gradient_flow_risks_at_most_the_bound_times_ridge():
    bound = early_stopping.FlowBound(*map(float, early_stopping.flow_bound()))
    s, t = np.geomspace(1e-6, 1e6, 4001), 0.7
    flow = jax.jit(regularization.gradient_flow_shrinkage)(s, t)
    ratio = np.asarray(flow / jax.jit(regularization.ridge_shrinkage)(s, 1 / t))
    assert 0 < bound.shrinkage - np.max(ratio) < 1e-4
    np.testing.assert_allclose(s[np.argmax(ratio)] * t, bound.product, rtol=1e-2)
    times = np.geomspace(0.01, 1e3, POINTS)
    for gamma in spread(0.5, 1.0, 2.0):
        ridge = np.asarray(ridge_risk(gamma, 1 / times, **NOISE))
        assert np.all(np.asarray(flow_risk(gamma, times, **NOISE)) <= bound.risk * ridge)


def test_shrinkage_at_its_ends():
    s, strength = jnp.array([0.0, 1.0, 0.0, 1.0]), jnp.array([0.0, 0.0, jnp.inf, jnp.inf])
    ridge = jax.jit(regularization.ridge_shrinkage)(s, strength)
    flow = jax.jit(regularization.gradient_flow_shrinkage)(s, strength)
    np.testing.assert_array_equal(ridge, [0, 1, 0, 0])
    np.testing.assert_array_equal(flow, [0, 0, 0, 1])


# --- errors ----------------------------------------------------------------------------------


def test_bad_input():
    with pytest.raises(ValueError, match=r"t must be zero or more; got -1.0"):
        regularization.soft_threshold(1.0, -1.0)
    with pytest.raises(ValueError, match=r"lam must be zero or more; got -0.1"):
        regularization.ridge_risk(0.5, -0.1, **NOISE)
    with pytest.raises(ValueError, match=r"lam must be zero or more; got -0.1"):
        regularization.ridge_shrinkage(0.5, -0.1)
    for keep in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"keep must be in \(0, 1\]; got {keep}"):
            regularization.dropout_penalty(jnp.eye(2), jnp.ones(2), keep)
    with pytest.raises(ValueError, match=r"x must be \(n, p\) and w \(p,\); got \(2, 2\) and \(3,"):
        regularization.dropout_penalty(jnp.eye(2), jnp.ones(3), 0.5)
    with pytest.raises(ValueError, match="n is 0; want a positive integer"):
        regularization.exact_min_norm_risk(0, 5, **NOISE)
    assert jnp.isnan(jax.jit(lambda lam: regularization.ridge_risk(0.5, lam, **NOISE))(-1.0))
    assert jnp.isnan(jax.jit(lambda t: regularization.soft_threshold(1.0, t))(-1.0))
    assert jnp.isnan(regularization.ridge_shrinkage(0.0, jnp.nan))


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    risk = jax.jit(regularization.ridge_risk)(jnp.float32(0.5), 0.1, **NOISE)
    assert risk.dtype == jnp.float32
    np.testing.assert_allclose(risk, 0.17678373, rtol=1e-6)


# --- random features -------------------------------------------------------------------------


def test_random_features_peak_where_features_equal_examples():
    psi1 = np.array([1.0, 2.0, 2.99, 3.0, 3.01, 6.0, 60.0])
    of = lambda lam: np.asarray(feature_risk(*spread(psi1, 3.0, lam), 1.0, 0.25)[0])[:7]
    risk, far = of(0.0), [0, 1, 5, 6]
    assert risk[3] == jnp.inf
    assert np.argmax(np.where(psi1 == 3, 0, risk)) in (2, 4)
    assert risk[6] < risk[0]
    # The solution of minimum norm is the limit of vanishing penalties.
    np.testing.assert_allclose(of(1e-11)[far], risk[far], rtol=1e-7)


def test_random_features_are_differentiable():
    of = lambda lam: np.asarray(feature_risk(*spread(2.0, 3.0, lam), 1.0, 0.25))
    slope = (of(0.1 + 1e-5)[0] - of(0.1 - 1e-5)[0]) / 2e-5
    np.testing.assert_allclose(of(0.1)[1], slope, rtol=1e-8)


def test_random_features_against_a_simulation():
    """Ridge on features of 60 inputs: within four standard errors and three per cent."""
    d, psi1, psi2, lam = 60, 2.0, 1.5, 0.2
    rng = np.random.default_rng(0)
    sphere = lambda n: (lambda g: g / np.linalg.norm(g, axis=1, keepdims=True))(
        rng.normal(size=(n, d))
    )
    risks = []
    for _ in range(cases(50)):
        w, beta = sphere(int(psi1 * d)), sphere(1)[0]
        x, new = (np.sqrt(d) * sphere(n) for n in (int(psi2 * d), 500))
        z, test = np.maximum(x @ w.T, 0), np.maximum(new @ w.T, 0)
        y = x @ beta + 0.5 * rng.normal(size=len(x))
        gram = z.T @ z / len(x) + lam * psi1 * np.eye(len(w))
        a = np.linalg.solve(gram, z.T @ y / len(x))
        risks.append(np.mean((test @ a - new @ beta) ** 2))
    want = feature_risk(*spread(psi1, psi2, lam), 1.0, 0.25)[0][0]
    error = 4 * np.std(risks, ddof=1) / np.sqrt(len(risks)) + 0.03 * want
    assert abs(np.mean(risks) - want) < error


def test_bad_features_are_named():
    with pytest.raises(ValueError, match=r"psi1 must be more than zero; got 0.0"):
        random_features.risk("relu", 0.0, 1.0, 0.1, **NOISE)
    with pytest.raises(ValueError, match=r"lam must be zero or more; got -0.1"):
        random_features.risk("relu", 1.0, 1.0, -0.1, **NOISE)
    for phi in ("cos", lambda h: 2 * h) if FULL else ():
        with pytest.raises(ValueError, match="phi must have a linear part and one that is not"):
            random_features.risk(phi, 1.0, 1.0, 0.1, **NOISE)
