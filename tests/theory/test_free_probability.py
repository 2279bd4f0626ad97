"""Spectra of Jacobians against the facts, exact cases, moments, mpmath and finite networks."""

import math
import re
from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import optimize, special

from dltheory.networks import activations
from dltheory.numerics import log_spectrum
from dltheory.theory import dual, free_probability, mean_field, slope_law, universality
from tests.facts import FACTS, assert_agrees
from tests.tier import FULL

# (activation, q, depth, weight_var, ensemble): kinks, atoms at either end, gaps, both ensembles.
CASES = {
    "marchenko_pastur": ("identity", 1.0, 1, 1.0, "gaussian"),
    "relu": ("relu", 1.0, 3, 2.0, "gaussian"),
    "atom_on_top": ("hard_tanh", 0.1, 10, 1.0, "orthogonal"),
    "smooth": ("tanh", 0.5, 2, 1.5, "orthogonal"),
    "one_layer": ("elu", 1.0, 1, 1.0, "orthogonal"),
}


def arguments(case):
    phi, q, depth, weight_var, ensemble = CASES[case]
    return phi, {"q": q, "depth": depth, "weight_var": weight_var, "ensemble": ensemble}


@cache
def density(case):
    phi, at = arguments(case)
    q = at.pop("q")
    solve = jax.jit(lambda q: free_probability.squared_density(phi, q=q, **at))
    return jax.tree.map(np.asarray, solve(q))


def variance(phi, q, depth, ensemble):
    at = {"q": q, "depth": depth, "weight_var": 1.0, "ensemble": ensemble}
    return free_probability.jacobian_variance(phi, **at)


def edge(phi, q, depth, ensemble):
    """At criticality."""
    at = {"q": q, "depth": depth, "weight_var": 1 / dual.derivative_moment(phi, q)}
    return free_probability.squared_edge(phi, ensemble=ensemble, **at)


def isometry(depth):
    """Where tanh with orthogonal weights has a relative variance of one on its critical line."""
    q = optimize.brentq(lambda q: variance("tanh", q, depth, "orthogonal") - 1, 1e-3, 1, rtol=1e-14)
    weight_var = 1 / dual.derivative_moment("tanh", q)
    return [q, weight_var, q - mean_field.q_map("tanh", q, weight_var=weight_var)]


def fuss_catalan(depth):
    at = {"q": 1.0, "depth": depth, "weight_var": 1.0, "ensemble": "gaussian"}
    return free_probability.squared_moments("identity", 4, **at)


def predicted(name):
    """What a public function says to the fact of this name; None if none covers it."""
    given = FACTS[name]["inputs"]
    parts = name.split(".")
    depth, q = given.get("L"), given.get("q", 1.0)
    both = lambda phi: [variance(phi, q, depth, e) for e in ("gaussian", "orthogonal")]
    match parts[1:]:
        case ["relu", "sigma2", _]:
            return both("relu")
        case ["tanh", "sigma2", "smallq"]:
            return variance("tanh", q, 1, "orthogonal") / q**2
        case ["tanh" | "erf" as phi, "sigma2", *_]:
            return both(phi)[::-1]
        case ["hardtanh_orth", "sigma2", *_]:
            return variance("hard_tanh", q, depth, "orthogonal")
        case ["hardtanh_orth", "edge", *_]:
            return edge("hard_tanh", q, depth, "orthogonal")
        case ["relu_orth" | "relu_gauss" as ensemble, "edge", _]:
            full = {"relu_orth": "orthogonal", "relu_gauss": "gaussian"}[ensemble]
            return edge("relu", q, depth, full)
        case ["tanh", "isometry_q"]:
            return isometry(depth)
        case ["ginibre", "moments", _]:
            return fuss_catalan(depth)
        case ["ginibre", "sim", _]:
            return fuss_catalan(depth)[1]
        case ["ginibre", "edge", _]:
            largest = edge("identity", q, depth, "gaussian")
            return [largest, largest**0.5]
        case ["ginibre", "edge_asym"]:
            return edge("identity", q, depth, "gaussian") / (math.e * (depth + 0.5))
        case ["universal", limit, _]:
            return universality.edge(given["sigma0_2"], limit)
        case ["resnet_identity_sv"]:
            factor = jnp.eye(2) + jnp.diag(jnp.array([1.0, -1.0])) / depth
            return np.exp(log_spectrum.log_singular_values(jnp.stack([factor] * depth)))
    return None


# Facts that test_finite_width and test_shattering cover; and one that nothing does.
ELSEWHERE = ("js.lyap.", "js.relu_lognorm.", "js.relu_moment2.", "js.shatter.")
UNCOVERED = {"js.haar.moments"}
HERE = [n for n in FACTS if n.startswith("js.") and not n.startswith(ELSEWHERE)]


@pytest.mark.parametrize("name", [n for n in HERE if n not in UNCOVERED])
def test_agrees_with_the_facts(name):
    assert_agrees(name, predicted(name))


def test_nearly_all_facts_are_covered():
    assert set(HERE) >= UNCOVERED
    assert len(UNCOVERED) <= 0.05 * sum(name.startswith("js.") for name in FACTS)


@pytest.mark.parametrize("depth", [1, 4, 1000])
def test_moments_of_gaussian_products_are_fuss_catalan_numbers(depth):
    at = {"q": 1.0, "depth": depth, "weight_var": 1.0, "ensemble": "gaussian"}
    wanted = [math.comb((depth + 1) * k, k) / (depth * k + 1) for k in range(1, 7)]
    found = free_probability.squared_moments("identity", 6, **at)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_orthogonal_linear_networks_are_isometries_at_any_depth():
    at = {"q": 1.0, "depth": 1000, "weight_var": 1.0, "ensemble": "orthogonal"}
    np.testing.assert_allclose(free_probability.squared_moments("identity", 5, **at), 1, rtol=1e-11)
    np.testing.assert_allclose(free_probability.squared_edge("identity", **at), 1, rtol=1e-11)
    assert free_probability.jacobian_variance("identity", **at) == 0
    assert free_probability.squared_atoms("identity", **at) == (1.0, 1.0)
    solve = jax.jit(lambda x: free_probability.squared_cdf(x, "identity", **at))
    np.testing.assert_allclose(solve(jnp.array([-1.0, 0.999, 1.001])), [0, 0, 1], atol=1e-9)


def test_transforms_of_cells_agree_with_dense_sums():
    """On parabolas of every kind: with the vertex inside or outside, flat, and at zero."""
    values = [[1, 1.6, 1.2], [0.2, 0.1, 0.3], [2, 2.1, 2.25], [0.5, 0.5, 0.5], [0, 0, 0]]
    values, mass = jnp.array(values), jnp.array([0.3, 0.25, 0.2, 0.15, 0.1])
    law = slope_law.Law(jnp.ones(()), jnp.full((), 2.5), mass, values)
    s = ((np.arange(40_000) + 0.5) / 20_000 - 1) / math.sqrt(0.6)
    middle, slope = values[:, 1:2], (values[:, 2:] - values[:, :1]) / 2
    bend = (values[:, 2:] + values[:, :1]) / 2 - middle
    a = np.asarray(middle + slope * s[None] + bend * s[None] ** 2)
    x, y = (a.ravel() for a in np.meshgrid([1.55, 0.15, 2.0, 0.5, 1.2, 7.0], [1e-2, 0.3, 3.0]))
    one_plus, angle = jax.jit(
        lambda u: (slope_law.one_plus_m(law, u), slope_law.mean_angle(law, u))
    )(jax.lax.complex(x, y))
    gaps = (x + 1j * y)[:, None, None] - a[None]
    mass = np.asarray(mass)
    wanted = mass @ np.mean((x + 1j * y)[:, None, None] / gaps, -1).T
    np.testing.assert_allclose(one_plus, wanted, rtol=1e-6)
    np.testing.assert_allclose(angle, mass @ np.mean(np.angle(gaps), -1).T, rtol=1e-6)


def test_the_density_is_that_of_marchenko_and_pastur():
    found = density("marchenko_pastur")
    x = found.support
    wanted = np.sqrt(x * (4 - x)) / (2 * np.pi * x)
    np.testing.assert_allclose(found.density, wanted, rtol=1e-9)
    assert x[-1] < 4
    assert 4 - x[-1] < 1e-3
    assert (found.stderr == 0).all()


@pytest.mark.parametrize("case", list(CASES)[: 5 if FULL else 3])
def test_the_density_has_the_moments_and_the_mass(case):
    found = density(case)
    phi, at = arguments(case)
    log_x, atoms = np.log(found.support), free_probability.squared_atoms(phi, **at)
    assert (np.diff(log_x) > 0).all()
    assert (found.density >= 0).all()
    moments = np.append(1.0, free_probability.squared_moments(phi, 3, **at))
    for k, wanted in enumerate(moments):
        smooth = np.trapezoid(found.density * found.support ** (k + 1), log_x)
        total = smooth + atoms.values**k @ atoms.masses
        np.testing.assert_allclose(total, wanted, rtol=1e-4, err_msg=f"moment {k}")
    assert found.support[-1] <= free_probability.squared_edge(phi, **at)


def test_the_distribution_is_the_integral_of_the_density():
    found = density("atom_on_top")
    phi, at = arguments("atom_on_top")
    atoms = free_probability.squared_atoms(phi, **at)
    steps = np.diff(np.log(found.support))
    product = found.density * found.support
    inner = np.cumsum((product[1:] + product[:-1]) / 2 * steps)
    solve = jax.jit(lambda x: free_probability.squared_cdf(x, phi, **at))
    share = np.asarray(solve(np.concatenate([found.support, [0.0, 1e9]])))
    share, ends = share[:-2], share[-2:]
    np.testing.assert_allclose(share[1:] - share[0], inner, atol=1e-4)
    at_zero = float(jnp.sum(jnp.where(atoms.values == 0, atoms.masses, 0)))
    np.testing.assert_allclose(ends, [at_zero, 1], atol=1e-5)


def test_atoms():
    at = {"q": 0.1, "depth": 10, "weight_var": 1.0, "ensemble": "orthogonal"}
    inside = math.erf(1 / math.sqrt(0.2))
    values, masses = free_probability.squared_atoms("hard_tanh", **at)
    np.testing.assert_allclose(values, [0, 0, 1])
    np.testing.assert_allclose(masses.sum(), 1 - inside + 10 * inside - 9, rtol=1e-12)
    assert free_probability.squared_atoms("abs", **at).masses.sum() == 1
    assert free_probability.squared_atoms("tanh", **at).masses.sum() == 0
    at["ensemble"] = "gaussian"
    np.testing.assert_allclose(
        free_probability.squared_atoms("hard_tanh", **at).masses.sum(), 1 - inside, rtol=1e-12
    )


def test_the_edge_agrees_with_mpmath():
    """One smooth case, where the edge is close to the support of the slopes."""
    q, depth = 1.0, 2
    with mpmath.workdps(20):
        slope = lambda h: mpmath.sech(h) ** 4
        normal = lambda h: mpmath.exp(-h * h / 2) / mpmath.sqrt(2 * mpmath.pi)
        panels = [0, 0.25, 0.5, 1, 2, 4, 9]
        mean = 2 * mpmath.quad(lambda h: slope(h) * normal(h), panels)

        def log_zeta(u):
            inner = lambda h: slope(h) / mean / (u - slope(h) / mean) * normal(h)
            m = 2 * mpmath.quad(inner, panels)
            return float(depth * mpmath.log(u) + (depth - 1) * mpmath.log(m / (1 + m)))

        found = optimize.minimize_scalar(
            log_zeta, bounds=(2.3, 4), method="bounded", options={"xatol": 1e-6}
        )
        wanted = np.exp(found.fun) * float(mean) ** depth
    at = {"q": q, "depth": depth, "weight_var": 1.0, "ensemble": "orthogonal"}
    np.testing.assert_allclose(free_probability.squared_edge("tanh", **at), wanted, rtol=1e-9)


def test_unbounded_slopes_have_no_edge():
    at = {"q": 1.0, "depth": 2, "weight_var": 1.0, "ensemble": "gaussian"}
    assert free_probability.squared_edge("relu2", **at) == jnp.inf


def test_spectra_of_networks_of_finite_width():
    """One network each: means to order 1 / n, the edge to order n**(-2/3)."""
    generator, n, depth, q = np.random.default_rng(1), 300, 3, 0.5
    at = {"q": q, "depth": depth, "weight_var": 1.3}
    # Quantiles, shuffled: independent slopes would fluctuate by n**(-1/2).
    h = math.sqrt(q) * special.ndtri((np.arange(n) + 0.5) / n)
    for ensemble in free_probability.ENSEMBLES:
        jacobian = np.eye(n)
        for _ in range(depth):
            weights = generator.normal(0, 1 / math.sqrt(n), (n, n))
            if ensemble == "orthogonal":
                weights = np.linalg.qr(weights)[0]
            slopes = np.cosh(generator.permutation(h)) ** -2
            jacobian = math.sqrt(1.3) * weights * slopes @ jacobian
        squares = np.linalg.svd(jacobian, compute_uv=False) ** 2
        both = {**at, "ensemble": ensemble}
        solve = jax.jit(lambda x, both=both: free_probability.squared_cdf(x, "tanh", **both))
        share = solve(np.sort(squares))
        distance = np.abs(share - (np.arange(n) + 0.5) / n).max()
        assert distance < 6 / n, (ensemble, distance)
        found = free_probability.squared_edge("tanh", **both)
        assert abs(squares.max() / found - 1) < 3 * n ** (-2 / 3), ensemble


@pytest.mark.parametrize("limit", universality.LIMITS)
def test_deep_networks_approach_the_universal_limits(limit):
    """At a variance of one half: slopes of tanh close to one, of hard_tanh zero or one."""
    phi = {"smooth": "tanh", "bernoulli": "hard_tanh"}[limit]
    errors = []
    for depth in (100, 400):
        gap = lambda q, depth=depth: variance(phi, q, depth, "orthogonal") - 0.5
        q = optimize.brentq(gap, 1e-3, 1, xtol=1e-13)
        errors.append(edge(phi, q, depth, "orthogonal") / universality.edge(0.5, limit) - 1)
    # The correction is of order 1 / depth, or the square root of that.
    assert abs(errors[0]) < 0.1
    assert abs(errors[1]) < 0.6 * abs(errors[0]) + 1e-9


@pytest.mark.parametrize(("limit", "s"), [("smooth", 2.0), *[("bernoulli", 0.5)] * FULL])
def test_the_universal_densities(limit, s):
    found = jax.jit(lambda s: universality.density(s, limit))(s)
    atom = max(0, 1 - s) if limit == "bernoulli" else 0
    top = math.exp(s)
    # S = exp(-s z) and exp(-s z / (1 + z)) have the second moment 1 + s.
    for k, wanted in enumerate([1, 1, 1 + s]):
        inner = np.trapezoid(found.density * found.support ** (k + 1), np.log(found.support))
        # In the class "bernoulli" a mass of about s / 700 lies where numbers underflow.
        allowed = s / 250 if k == 0 and limit == "bernoulli" else 2e-4
        np.testing.assert_allclose(inner + atom * top**k, wanted, rtol=allowed)
    assert found.support[-1] <= universality.edge(s, limit)


def test_derivatives_agree_with_finite_differences():
    at = {"depth": 3, "ensemble": "orthogonal"}

    def everything(q, weight_var):
        both = {"q": q, "weight_var": weight_var, **at}
        return jnp.stack(
            [
                free_probability.jacobian_variance("tanh", **both),
                free_probability.squared_moments("tanh", 2, **both)[1],
                free_probability.squared_edge("tanh", **both),
            ]
        )

    value, slopes = jax.jit(everything), jax.jit(jax.jacfwd(everything, (0, 1)))(0.7, 1.3)
    step = 1e-5
    by_q = (value(0.7 + step, 1.3) - value(0.7 - step, 1.3)) / (2 * step)
    by_w = (value(0.7, 1.3 + step) - value(0.7, 1.3 - step)) / (2 * step)
    np.testing.assert_allclose(slopes, (by_q, by_w), rtol=1e-7, atol=1e-9)


def test_many_at_once():
    q = jnp.array([0.0, 0.5, 2.0])
    at = {"depth": 2, "weight_var": 1.0, "ensemble": "gaussian"}
    solve = jax.jit(lambda q: free_probability.squared_edge("erf", q=q, **at))
    together, alone = solve(q), [solve(q[i]) for i in (0, 2)]
    np.testing.assert_allclose(together[jnp.array([0, 2])], alone, rtol=1e-12)
    np.testing.assert_allclose(together[0], 6.75 * (4 / np.pi) ** 2, rtol=1e-12)


def test_bad_input():
    at = {"q": 1.0, "depth": 2, "weight_var": 1.0, "ensemble": "gaussian"}
    for change, error, text in (
        ({"depth": 0}, ValueError, "depth is 0; want a positive integer"),
        ({"depth": 2.0}, TypeError, "depth is 2.0, a float; want a positive integer"),
        ({"ensemble": "haar"}, ValueError, "ensemble is 'haar'; want one of gaussian, orthogonal"),
        ({"q": -1.0}, ValueError, "q must be zero or more; got -1.0"),
        ({"weight_var": -1.0}, ValueError, "weight_var must be zero or more; got -1.0"),
    ):
        for function in (free_probability.jacobian_variance, free_probability.squared_density):
            with pytest.raises(error, match=re.escape(text)):
                function("tanh", **{**at, **change})
    with pytest.raises(ValueError, match="step jumps, and has no Jacobian; want a continuous"):
        free_probability.squared_edge("step", **at)
    with pytest.raises(ValueError, match="points is 0; want a positive integer"):
        free_probability.squared_density("tanh", points=0, **at)
    with pytest.raises(ValueError, match="n is 0; want a positive integer"):
        free_probability.squared_moments("tanh", 0, **at)
    with pytest.raises(ValueError, match="limit is 'x'; want one of smooth, bernoulli"):
        universality.edge(1.0, "x")
    with pytest.raises(ValueError, match=r"variance must be zero or more; got -1\.0"):
        universality.density(-1.0, "smooth")
    assert jnp.isnan(free_probability.jacobian_variance("tanh", **{**at, "q": jnp.nan}))
    traced = jax.jit(lambda q: free_probability.squared_edge("tanh", **{**at, "q": q}))
    assert jnp.isnan(traced(-1.0))
    assert np.isfinite(traced(1.0))


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    phi = activations.get("hard_tanh")
    at = {"q": 0.5, "depth": 2, "weight_var": 1.2, "ensemble": "orthogonal"}
    q = at.pop("q")
    solve = lambda q: free_probability.squared_density(phi, q=q, **at, points=64)
    found = jax.jit(solve)(q)
    assert found.density.dtype == jnp.float32
    assert jnp.isfinite(found.density).all()
    found = jax.jit(lambda q: free_probability.squared_edge(phi, q=q, **at))(q)
    np.testing.assert_allclose(found, np.float32(1.44), rtol=1e-4)


@pytest.mark.usefixtures("float32")
def test_slopes_near_zero_do_not_underflow_in_float32():
    """Where the slope of gelu crosses zero, squares of differences underflow."""
    at = {"depth": 4, "weight_var": 1.2, "ensemble": "orthogonal", "points": 64}
    x, density, _ = jax.jit(lambda q: free_probability.squared_density("gelu", q=q, **at))(1.0)
    np.testing.assert_allclose(np.trapezoid(density * x, np.log(x)), 1, atol=1e-3)
