"""Bounds: inversions against mpmath and scipy, and that what they bound is never above them."""

import itertools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import stats

from dltheory.theory import capacity, generalization, pac_bayes
from tests.tier import cases

SIZE = 40  # one shape is one compilation

binary_kl = jax.jit(generalization.binary_kl)
from_test_set = jax.jit(generalization.clopper_pearson)
DRAWS = np.random.default_rng(0)


def spread(*values):
    return [np.resize(np.asarray(value, float), SIZE) for value in values]


@jax.jit
def inverse_and_slopes(q, c):
    inverse, one = generalization.kl_inverse, jnp.ones_like(q)
    found, along_q = jax.jvp(lambda q: inverse(q, c), (q,), (one,))
    return found, along_q, jax.jvp(lambda c: inverse(q, c), (c,), (one,))[1]


def invert(q, c):
    return np.asarray(inverse_and_slopes(*spread(q, c))[0])


# --- inversions ------------------------------------------------------------------------------


def test_relative_entropy_to_all_digits():
    q = DRAWS.uniform(size=SIZE) ** 3
    p = np.clip(q + DRAWS.choice([1e-9, -1e-5, 0.1, -0.4], SIZE) * q, 1e-300, 1)
    with mpmath.workdps(60):
        exact = lambda q, p: q * mpmath.log(q / p) + (1 - q) * mpmath.log((1 - q) / (1 - p))
        # The difference of the two is what the function is given to full precision.
        want = [float(exact(mpmath.mpf(a), mpmath.mpf(b))) for a, b in zip(q, p, strict=True)]
    np.testing.assert_allclose(binary_kl(q, p), want, rtol=1e-13)
    q, p = spread([0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.3], [0.25, 0.0, 0.25, 1.0, 0.0, 1.0, 0.3])
    want = [-math.log(0.75), 0, math.log(4), 0, np.inf, np.inf, 0]
    np.testing.assert_allclose(np.asarray(binary_kl(q, p))[:7], want, rtol=1e-15)


def test_the_inverse_is_exact():
    q, c = DRAWS.uniform(size=SIZE) ** 4, 10 ** DRAWS.uniform(-14, 0.8, SIZE)
    p = np.asarray(invert(q, c))
    assert np.all(p >= q)
    resolved = 1 - p > 1e-6  # beyond, one digit of p is many of the entropy
    np.testing.assert_allclose(np.asarray(binary_kl(q, p))[resolved], c[resolved], rtol=1e-6)
    with mpmath.workdps(40):
        for a, level, found in list(zip(map(mpmath.mpf, q), c, p, strict=True))[: cases(SIZE)]:
            gap = lambda p, a=a, level=level: (
                a * mpmath.log(a / p) + (1 - a) * mpmath.log((1 - a) / (1 - p)) - level
            )
            near = mpmath.mpf(found)
            root = mpmath.findroot(gap, (near, near * (1 - mpmath.mpf(2) ** -40)), tol=1e-30)
            np.testing.assert_allclose(found, float(root), rtol=1e-14)
    q, c = spread([0.0, 0.2, 1.0, 0.3, 0.0], [0.7, 0.0, 0.4, np.inf, np.inf])
    np.testing.assert_allclose(invert(q, c)[:5], [-np.expm1(-0.7), 0.2, 1, 1, 1], rtol=1e-15)


def test_the_inverse_is_differentiable():
    q, c = spread(0.1, 0.16)
    _, *slopes = inverse_and_slopes(q, c)
    step = 1e-6
    along_q = (invert(q + step, c) - invert(q - step, c)) / (2 * step)
    along_c = (invert(q, c + step) - invert(q, c - step)) / (2 * step)
    np.testing.assert_allclose(slopes, [along_q, along_c], rtol=1e-8)


def test_the_clopper_pearson_is_that_of_clopper_and_pearson():
    n = DRAWS.integers(2, 10**4, SIZE)
    k, delta = DRAWS.integers(0, n + 1), 10 ** DRAWS.uniform(-9, -0.1, SIZE)
    k[:4], k[4:8] = 0, n[4:8]
    want = np.where(k == n, 1, stats.beta.isf(delta, k + 1, np.maximum(n - k, 1)))
    bound = from_test_set(k.astype(float), n.astype(float), delta)
    np.testing.assert_allclose(bound.value, want, rtol=1e-10)
    np.testing.assert_array_equal(bound.vacuous, k == n)


# --- what is bounded is never above ----------------------------------------------------------


def test_the_clopper_pearson_fails_as_often_as_it_may():
    """Over all outcomes: the chance that the true error is above the bound, exactly."""
    k, delta = jnp.arange(SIZE, dtype=float), 0.1
    bound = from_test_set(*spread(k, SIZE - 1, delta)).value
    for p in DRAWS.uniform(size=cases(200)):
        failing = stats.binom.pmf(np.arange(SIZE), SIZE - 1, p)[np.asarray(bound) < p]
        assert failing.sum() <= delta
    # And no smaller bound would do: just above one of its values it fails with that chance.
    p = float(bound[7]) + 1e-9
    np.testing.assert_allclose(stats.binom.cdf(7, SIZE - 1, p), delta, rtol=1e-6)


def test_the_three_forms_of_pac_bayes_are_in_order():
    risk, kl = DRAWS.uniform(size=SIZE) / 2, 10 ** DRAWS.uniform(-2, 3, SIZE)
    forms = generalization.pac_bayes_kl, pac_bayes.mcallester, pac_bayes.quadratic
    all_of_them = jax.jit(lambda *of: [form(*of).value for form in forms])
    exact, pinsker, quadratic = map(np.asarray, all_of_them(risk, kl, 500, 0.05))
    assert np.all(exact <= np.minimum(pinsker, quadratic) + 1e-14)
    vacuous = pac_bayes.mcallester(0.1, 1e4, 500, 0.05)
    assert vacuous.value > 1
    assert vacuous.vacuous


def test_pac_bayes_holds_for_a_gaussian_posterior_in_most_draws():
    """Coins: a posterior on two of them, the prior uniform, the risk its mean."""
    truth, n, delta = np.array([0.3, 0.5]), 60, 0.1
    counts = DRAWS.binomial(n, truth, size=(cases(20000), 2)) / n
    weights = np.exp(-20 * counts) / np.exp(-20 * counts).sum(1, keepdims=True)
    kl = np.sum(weights * np.log(2 * weights), axis=1)
    bound = jax.jit(generalization.pac_bayes_kl)((weights * counts).sum(1), kl, n, delta).value
    failures = np.mean(weights @ truth > np.asarray(bound))
    assert failures <= delta + 4 * math.sqrt(delta * (1 - delta) / len(counts))


def test_certificates_hold_though_the_risk_is_sampled_and_the_prior_chosen():
    """Two coins again, with two priors in a union and a few draws from the posterior."""
    truth, n, samples, deltas = np.array([0.3, 0.5]), 60, 20, (0.1, 0.1)
    counts = DRAWS.binomial(n, truth, size=(cases(20000), 2)) / n
    weights = np.exp(-20 * counts) / np.exp(-20 * counts).sum(1, keepdims=True)
    priors = np.array([[0.5, 0.5], [0.9, 0.1]])
    kl = np.sum(weights[:, None] * np.log(weights[:, None] / priors), axis=2)
    # The better of the two afterwards, each at half the probability of failure.
    kl = kl.min(1) + math.log(2)
    drawn = DRAWS.binomial(samples, weights[:, 0])
    risk = (drawn * counts[:, 0] + (samples - drawn) * counts[:, 1]) / samples
    certify = jax.jit(
        lambda risk, kl: pac_bayes.certificate(
            risk, samples, kl, n, deltas[0], sampling_delta=deltas[1]
        )
    )
    failures = np.mean(weights @ truth > np.asarray(certify(risk, kl).value))
    allowed = sum(deltas)
    assert failures <= allowed + 4 * math.sqrt(allowed * (1 - allowed) / len(counts))


def test_bounds_from_the_sample_alone_fail_as_seldom_as_they_promise():
    """Thresholds on a line with noisy labels: the best one on the sample, and its true error."""
    n, delta, noise, repeats = 50, 0.1, 0.2, cases(5000)
    grid = np.arange(11) / 10
    x = DRAWS.uniform(size=(repeats, n))
    y = (x > 0.5) ^ (DRAWS.uniform(size=x.shape) < noise)
    wrong = np.mean((x[..., None] > grid) != y[..., None], axis=1)
    best = wrong.argmin(1)
    risk = wrong[np.arange(repeats), best]
    true = noise + (1 - 2 * noise) * np.abs(grid[best] - 0.5)
    vc = jax.jit(lambda risk: capacity.vc_bound(risk, 1, n, delta).value)
    bounds = {
        "one of finitely many": risk + capacity.finite_class_gap(math.log(11), n, delta),
        # The exact Rademacher complexity of thresholds is at most Massart's.
        "rademacher": generalization.margin_bound(
            risk, math.sqrt(2 * math.log(11) / n), 1.0, n, delta
        ).value,
        "vc": vc(risk),
    }
    for name, bound in bounds.items():
        failures = np.mean(true > np.asarray(bound))
        assert failures <= delta + 4 * math.sqrt(delta * (1 - delta) / repeats), name
    # Without what they add, the best of the sample is more often worse than it looks.
    assert np.mean(true > risk) > 0.5


def test_compression_fails_as_seldom_as_it_promises():
    """The best threshold on a line that is one of the examples."""
    n, delta, repeats = 20, 0.1, cases(5000)
    x = DRAWS.uniform(size=(repeats, n))
    y = (x > 0.5) ^ (DRAWS.uniform(size=x.shape) < 0.2)
    # A threshold at one of the examples is a function of that example alone.
    differs = (x[:, None, :] > x[:, :, None]) != y[:, None, :]
    wrong = np.sum(differs & ~np.eye(n, dtype=bool), axis=2)
    best = wrong.argmin(1)
    errors = wrong[np.arange(repeats), best].astype(float)
    true = 0.2 + 0.6 * np.abs(x[np.arange(repeats), best] - 0.5)
    bound = jax.jit(lambda errors: capacity.compression_bound(errors, 1, n, delta).value)(errors)
    failures = np.mean(true > np.asarray(bound))
    assert failures <= delta + 4 * math.sqrt(delta * (1 - delta) / repeats)


def test_the_price_of_a_chosen_prior():
    options = {"largest": 0.1, "precision": 100.0}
    allowed = pac_bayes.allowed_prior(jnp.array([0.05, 0.0999, 0.0501, 0.2]), **options)
    j = np.array([69, 1, 69, 1])
    np.testing.assert_allclose(allowed, 0.1 * np.exp(-j / 100), rtol=1e-12)
    price = pac_bayes.prior_price(allowed, **options)
    np.testing.assert_allclose(price, np.log(np.pi**2 * j**2 / 6), rtol=1e-9, atol=1e-9)
    # All shares of the probability of failure together are that probability.
    every = pac_bayes.prior_price(0.1 * np.exp(-np.arange(1, 2001) / 100), **options)
    np.testing.assert_allclose(np.exp(-every).sum(), 1, atol=4e-4)


def test_a_certificate_is_the_inverse_twice():
    upper = generalization.kl_inverse(0.1, math.log(2 / 0.01) / 500)
    want = generalization.pac_bayes_kl(upper, 30.0, 1000, 0.04)
    found = pac_bayes.certificate(0.1, 500, 30.0, 1000, 0.04, sampling_delta=0.01)
    assert found.value == want.value > generalization.pac_bayes_kl(0.1, 30.0, 1000, 0.04).value
    # The numbers of Dziugaite and Roy (2017).
    np.testing.assert_allclose(
        generalization.pac_bayes_kl(0.028, 5144.0, 55_000, 0.025).value, 0.161, atol=2e-3
    )


def test_relative_entropy_of_gaussians_is_an_integral():
    p, q = stats.norm(0.0, 0.5), stats.norm(0.7, 0.3)
    want = q.expect(lambda w: q.logpdf(w) - p.logpdf(w))
    found = pac_bayes.gaussian_kl(0.49, 1, var=0.09, prior_var=0.25)
    np.testing.assert_allclose(found, want, rtol=1e-8)
    assert pac_bayes.gaussian_kl(0.49, 1, var=0.0, prior_var=0.25) == jnp.inf


def test_compression_is_the_clopper_pearson_with_a_union():
    price = (math.log(math.comb(100, 10)) + math.log(2000)) / 90
    of = jax.jit(lambda errors: capacity.compression_bound(errors, 10, 100, 0.05))
    bound = of(jnp.array([0.0, 5.0, 90.0]))
    np.testing.assert_allclose(bound.value[0], -math.expm1(-price), rtol=1e-12)
    # Beyond the exact tail of the binomial, which has no union to pay.
    assert bound.value[1] > from_test_set(*spread(5, 90, 0.05)).value[0]
    np.testing.assert_array_equal(bound.vacuous, [False, False, True])


# --- complexities ----------------------------------------------------------------------------


def test_the_linear_rademacher_bounds_are_above_the_exact_values():
    exact = jax.jit(capacity.rademacher_exact, static_argnames="ball")
    for _ in range(cases(30)):
        x = DRAWS.normal(size=(7, 3))
        signs = np.array(list(itertools.product([-1, 1], repeat=7))) @ x / 7
        l2, l1 = exact(x, 2.0), exact(x, 2.0, ball="l1")
        np.testing.assert_allclose(l2, 2 * np.linalg.norm(signs, axis=1).mean(), rtol=1e-12)
        np.testing.assert_allclose(l1, 2 * np.abs(signs).max(1).mean(), rtol=1e-12)
        bound = generalization.rademacher_linear(x, 2.0)
        assert l2 <= bound <= math.sqrt(2) * l2
        assert l1 <= capacity.rademacher_l1(x, 2.0)


def test_the_network_bound_is_above_what_small_networks_reach():
    """For one hidden ReLU unit the supremum over its direction is a search on a circle."""
    x = DRAWS.normal(size=(6, 2))
    angles = np.linspace(0, 2 * np.pi, 4001)
    relu = np.maximum(np.stack([np.cos(angles), np.sin(angles)], 1) @ x.T, 0)
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    reached = np.mean(np.abs(signs @ relu.T).max(1)) / 6  # an output weight of either sign
    bound = capacity.rademacher_network(x, np.array([1.0, 1.0]))
    assert reached <= bound
    want = generalization.rademacher_linear(x, 6.0) * (math.sqrt(4 * math.log(2)) + 1)
    np.testing.assert_allclose(capacity.rademacher_network(x, np.array([2.0, 3.0])), want, 1e-12)


def test_spectral_complexity():
    a, b = DRAWS.normal(size=(4, 3)), DRAWS.normal(size=(2, 4))
    spectral = [np.linalg.norm(w, 2) for w in (a, b)]
    rows = [np.linalg.norm(w, axis=1).sum() for w in (a, b)]
    ratios = sum((r / s) ** (2 / 3) for r, s in zip(rows, spectral, strict=True))
    complexity = jax.jit(lambda a, b: generalization.spectral_complexity([a, b]))
    np.testing.assert_allclose(complexity(a, b), np.prod(spectral) * ratios**1.5, rtol=1e-12)
    np.testing.assert_allclose(complexity(5 * a, b / 5), complexity(a, b), rtol=1e-12)
    assert complexity(0 * a, b) == 0
    of = lambda n: generalization.spectral_margin_bound(
        0.0, 1.0, math.sqrt(n), 1.0, width=10, n=n, delta=0.05
    )
    assert of(10**3).vacuous
    assert not of(10**10).vacuous


def test_growth_functions_count():
    """Labellings of points on a line and in a plane, by trying all hyperplanes through pairs."""
    assert capacity.halfspaces(5, 1) == 10
    assert capacity.growth_bound(3, 5) == 8
    points = DRAWS.normal(size=(6, 2))
    found = set()
    for i, j in itertools.combinations(range(6), 2):
        normal = (points[j] - points[i])[::-1] * [1, -1]
        side = np.sign((points - points[i]) @ normal)
        for a, b in itertools.product([-1, 1], repeat=2):
            side[i], side[j] = a, b
            found |= {tuple(side), tuple(-side)}
    assert len(found) == capacity.halfspaces(6, 2) <= capacity.growth_bound(6, 3)


def test_uniform_bounds():
    np.testing.assert_allclose(
        capacity.vc_bound(0.1, 10, 10**6, 0.05).value,
        0.1 + math.sqrt(8 / 1e6 * (10 * (1 + math.log(2e5)) + math.log(80))),
    )
    assert capacity.vc_bound(0.1, 10**6, 100, 0.05).vacuous
    bound = generalization.margin_bound(0.1, 0.02, 0.5, 10**4, 0.05)
    np.testing.assert_allclose(bound.value, 0.1 + 0.08 + 3 * math.sqrt(math.log(40) / 2e4))


# --- errors ----------------------------------------------------------------------------------


def test_bad_input():
    for delta in (0.0, 1.0, -0.1):
        for bound in (generalization.pac_bayes_kl, pac_bayes.mcallester, pac_bayes.quadratic):
            with pytest.raises(ValueError, match=rf"delta must be in \(0, 1\); got {delta}"):
                bound(0.1, 1.0, 10, delta)
        with pytest.raises(ValueError, match=rf"delta must be in \(0, 1\); got {delta}"):
            generalization.clopper_pearson(1, 10, delta)
        with pytest.raises(ValueError, match=rf"delta must be in \(0, 1\); got {delta}"):
            pac_bayes.certificate(0.1, 10, 1.0, 10, 0.05, sampling_delta=delta)
        with pytest.raises(ValueError, match=rf"delta must be in \(0, 1\); got {delta}"):
            capacity.finite_class_gap(1.0, 10, delta)
        with pytest.raises(ValueError, match=rf"delta must be in \(0, 1\); got {delta}"):
            capacity.vc_bound(0.1, 3, 10, delta)
        with pytest.raises(ValueError, match=rf"delta must be in \(0, 1\); got {delta}"):
            capacity.compression_bound(0, 1, 10, delta)
    with pytest.raises(ValueError, match="samples must be one or more; got 0"):
        pac_bayes.certificate(0.1, 0, 1.0, 10, 0.05, sampling_delta=0.1)
    with pytest.raises(ValueError, match=r"prior_var must be zero or more; got -1\.0"):
        pac_bayes.prior_price(-1.0, largest=0.1, precision=100.0)
    with pytest.raises(ValueError, match="n must be one or more; got 0"):
        generalization.pac_bayes_kl(0.1, 1.0, 0, 0.05)
    with pytest.raises(ValueError, match=r"risk must be in \[0, 1\]; got 1.1"):
        generalization.pac_bayes_kl(1.1, 1.0, 10, 0.05)
    with pytest.raises(ValueError, match="kl must be zero or more; got -1"):
        generalization.pac_bayes_kl(0.1, -1.0, 10, 0.05)
    with pytest.raises(
        ValueError, match="errors must be at most n, the number of examples; got 11"
    ):
        generalization.clopper_pearson(11, 10, 0.05)
    with pytest.raises(ValueError, match="margin must be more than zero; got 0"):
        generalization.margin_bound(0.1, 0.02, 0.0, 100, 0.05)
    with pytest.raises(ValueError, match=r"x must be \(n, d\) with at least one row; it has shape"):
        generalization.rademacher_linear(np.zeros((0, 3)), 1.0)
    with pytest.raises(ValueError, match=r"weights must be one or more matrices \(out, in\); got"):
        generalization.spectral_complexity([])
    with pytest.raises(ValueError, match="ball is 'l3'; want one of l2, l1"):
        capacity.rademacher_exact(np.eye(3), 1.0, ball="l3")
    with pytest.raises(ValueError, match=r"with n from 1 to 20; it has shape \(30, 30\)"):
        capacity.rademacher_exact(np.eye(30), 1.0)
    with pytest.raises(ValueError, match="size is 10; want fewer than n = 10, to judge"):
        capacity.compression_bound(0, 10, 10, 0.05)
    with pytest.raises(ValueError, match="parameters is 3; want more than layers = 3"):
        capacity.network_dimension(3, 3)
    bad = invert(*spread([0.1, 1.5, 0.1], [0.2, 0.1, -1.0]))
    np.testing.assert_array_equal(np.isnan(bad[:3]), [False, True, True])
