"""Constructions reach their proven errors, and no network errs more than its bound says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dltheory.networks import models
from dltheory.theory import approximation, constructions, layouts, selections
from tests.tier import cases

UNIT = (0.0, 1.0)


def evaluated(net, x):
    return np.asarray(net.apply(net.params, jnp.asarray(x, float).reshape(len(x), -1)))[:, 0]


def width(net):
    return net.params["params"]["first"]["kernel"].shape[1]


def worst(net, f, interval, points=20_001):
    x = np.linspace(*interval, points)
    return np.abs(evaluated(net, x) - np.asarray(jax.vmap(f)(x))).max()


def test_interpolants_have_their_errors():
    for free in (False, True):
        net = constructions.interpolant(lambda x: x**2, 6, UNIT, free=free)
        np.testing.assert_allclose(net.bound, 1 / 144, rtol=1e-9)
        assert worst(net, lambda x: x**2, UNIT) <= net.bound
        assert width(net) == 6
    # Knots that follow the curvature approach the constant; equal ones are at one half as a power.
    constant = (np.exp(1.5) - 1) ** 2 / 2
    net = constructions.interpolant(jnp.exp, 24, (0.0, 3.0), free=True)
    np.testing.assert_allclose(net.bound * 24**2, constant, rtol=0.02)
    # The curvature may have a pole at an end: of the root, int sqrt|f''| = 2.
    net = constructions.interpolant(jnp.sqrt, 32, UNIT, free=True)
    np.testing.assert_allclose(net.bound * 32**2, 1 / 2, rtol=0.05)
    np.testing.assert_allclose(constructions.interpolant(jnp.sqrt, 4, UNIT).bound, 1 / 8, rtol=1e-8)


def test_the_best_polyline_has_half_the_error():
    for f, exact in ((jnp.sqrt, 1 / 48), (lambda x: x**2, 1 / 72))[: cases(10)]:
        net = constructions.best_piecewise_linear(f, 3, UNIT)
        np.testing.assert_allclose(net.bound, exact, rtol=1e-8)
        assert worst(net, f, UNIT) <= net.bound * (1 + 1e-12)


def test_staircases():
    net = constructions.staircase(jnp.exp, 10, UNIT)
    np.testing.assert_allclose(net.bound, (np.e - 1) / 20, rtol=1e-9)
    assert width(net) == 9
    soft = constructions.staircase(jnp.exp, 10, UNIT, slope=1e3)
    assert abs(soft.bound / net.bound - 1) < 1e-8
    assert worst(soft, jnp.exp, UNIT) <= soft.bound
    wave = lambda x: jnp.sin(7 * x)
    net = constructions.staircase(wave, 12, UNIT)
    assert worst(net, wave, UNIT) <= net.bound
    least = jax.jit(lambda: approximation.staircase_error(wave, 12, UNIT))()
    assert net.bound <= least * (1 + 1e-9)


# Target, interval and, where it is known, the constant of the best error.
TARGETS = {
    "exp": (jnp.exp, UNIT),
    "sqrt": (jnp.sqrt, UNIT),
    "abs": (jnp.abs, (-1.0, 1.5)),
    "runge": (lambda x: 1 / (1 + 25 * x**2), (-1.0, 1.0)),
    "sine": (lambda x: jnp.sin(2 * jnp.pi * x), UNIT),
    "gelu": (jax.nn.gelu, (-4.0, 4.0)),
    "tanh": (lambda x: jnp.tanh(5 * x), (-1.0, 1.0)),
    "gauss": (lambda x: jnp.exp(-(x**2) / 2), (-3.0, 3.0)),
    "cusp": (lambda x: jnp.sqrt(jnp.abs(x - 0.2)), (-1.0, 1.0)),
    "cube root": (lambda x: jnp.sign(x) * jnp.abs(x) ** (1 / 3), (-1.0, 1.0)),
    "entropy": (lambda x: -x * jnp.log(x), (0.1, 1.0)),
    "chirp": (lambda x: jnp.sin(20 * x**2), UNIT),
    "softplus": (jax.nn.softplus, (-5.0, 5.0)),
    "steps": (lambda x: jnp.clip(20 * x, 0.0, 1.0) + jnp.clip(5 * x - 3, 0.0, 1.0), UNIT),
    "elu": (jax.nn.elu, (-3.0, 2.0)),
    "quintic": (lambda x: x**5 - x**3 + x, (-1.0, 1.0)),
    "sinc": (lambda x: jnp.sin(9 * x) / x, (0.5, 3.0)),
    "cosh": (lambda x: jnp.exp(x) + jnp.exp(-x), (-1.0, 1.0)),
    "log": (jnp.log, (0.05, 2.0)),
    "kinked wave": (lambda x: jnp.abs(jnp.sin(6 * x)), UNIT),
}
WANTED = [(name, eps) for eps in (1e-2, 1e-4, 1e-1, 1e-3) for name in TARGETS]


@pytest.mark.parametrize(("name", "eps"), WANTED[: cases(len(WANTED))])
def test_what_is_approximated_is_certified(name, eps):
    f, interval = TARGETS[name]
    net = constructions.approximate(f, eps, interval)
    assert 0 < net.bound <= eps
    x = np.linspace(*interval, 10 * cases(100_000) + 1)
    values = np.asarray(jax.vmap(f)(x))
    error = np.abs(evaluated(net, x) - values).max()
    # The best there is has sqrt(C / eps) pieces as eps falls, 4 sqrt(C) = int sqrt|f''|: roots of
    # second differences sum to that. Two more for kinks, as one unit for "steps" has none other.
    best = np.sqrt(np.abs(np.diff(values[::50], 2))).sum() / (4 * np.sqrt(eps))
    assert width(net) <= 2 * max(best, {"steps": 2, "abs": 1}.get(name, 0)) + 2
    rounding = 1e-15 * float(jnp.sum(jnp.abs(net.params["params"]["last"]["kernel"])))
    assert error <= net.bound + rounding
    # Little is given away: the error is what was asked for, unless the target is piecewise linear.
    assert error > 0.9 * eps or name in ("abs", "steps") or width(net) < 6


@pytest.mark.parametrize("eps", [1e-3, 1e-4][: cases(20)])
def test_no_more_units_than_the_best_network_has(eps):
    for name in ("exp", "sqrt"):
        f, interval = TARGETS[name]
        n = width(constructions.approximate(f, eps, interval))
        constant = {"exp": (np.sqrt(np.e) - 1) ** 2 / 4, "sqrt": 0.25}[name]
        assert n < 1.08 * np.sqrt(constant / eps) + 1, name
    assert width(constructions.approximate(jnp.abs, 1e-4, (-1.0, 1.0))) == 2


def test_a_known_derivative_serves_instead_of_the_program():
    looped = lambda x: lax.while_loop(lambda h: h < 0, lambda h: h + 1, x)
    f = lambda x: jax.scipy.special.gammaln(x) + 0 * looped(x)
    with pytest.raises(ValueError, match=r"f cannot be bounded by itself: .* Give lipschitz= or"):
        constructions.approximate(f, 1e-2, (1.0, 3.0))
    for known in ({"lipschitz": 1.0}, {"curvature": np.pi**2 / 6}):
        net = constructions.approximate(f, 1e-2, (1.0, 3.0), **known)
        assert worst(net, jax.scipy.special.gammaln, (1.0, 3.0)) <= net.bound <= 1e-2


@pytest.mark.usefixtures("float32")
def test_the_bound_is_that_of_the_stored_parameters():
    net = constructions.approximate(jnp.exp, 1e-3, UNIT)
    assert net.params["params"]["last"]["kernel"].dtype == jnp.float32
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), net.params)
    x = np.linspace(0, 1, 5001)[:, None]
    hidden = np.maximum(
        x * params["params"]["first"]["kernel"] + params["params"]["first"]["bias"], 0
    )
    y = hidden @ params["params"]["last"]["kernel"] + params["params"]["last"]["bias"]
    assert np.abs(y - np.exp(x)).max() <= net.bound <= 1e-3
    with pytest.raises(
        ValueError, match=r"eps is 1e-09, below what parameters of float32 can hold"
    ):
        constructions.approximate(jnp.exp, 1e-9, (1.0, 1.001))


@pytest.mark.parametrize("m", (3, 1, 6)[: cases(10)])
def test_deep_networks_are_what_the_papers_say(m):
    """On dyadic points all of it is exact."""
    x = np.arange(2 ** (m + 2) + 1) / 2 ** (m + 2)
    gap = evaluated(constructions.square(m), x) - x**2
    assert gap.min() == 0
    assert gap.max() == constructions.square(m).bound == 4.0 ** -(m + 1)
    pairs = np.stack(np.meshgrid(x, x), -1).reshape(-1, 2)
    gap = np.abs(evaluated(constructions.product(m), pairs) - pairs.prod(1))
    assert gap.max() == constructions.product(m).bound == 4.0 ** -(m + 1)
    folded = x
    for _ in range(m):
        folded = 1 - np.abs(2 * folded - 1)
    np.testing.assert_array_equal(evaluated(constructions.tent(m), x), folded)
    layers = constructions.square(m).params["params"]
    assert layers.get("hidden", {"kernel": np.zeros(0)})["kernel"].shape[0] == m - 1


def test_parameters_are_those_of_the_model():
    """Flax runs them as they are, one hidden layer and several."""
    x = jnp.linspace(0, 1, 9)[:, None]
    for net, depth in ((constructions.square(3), 3), (constructions.square(1), 1)):
        mlp = models.MLP(3, depth, 1, activation=jax.nn.relu)
        np.testing.assert_array_equal(mlp.apply(net.params, x), net.apply(net.params, x))
        assert net.apply is layouts.relu_network


@pytest.mark.parametrize("n", [5, 1, 2, 6][: cases(10)])
def test_selections_are_exact(n):
    x = np.round(np.random.default_rng(n).normal(size=(500, n)) * 64) / 64
    for select, wanted in (
        (selections.maximum, np.max),
        (selections.minimum, np.min),
        (selections.median, np.median),
    ):
        np.testing.assert_array_equal(evaluated(select(n), x), wanted(x, axis=1))
    assert len(jax.tree.leaves(selections.maximum(8).params)) == 6
    assert selections.maximum(8).params["params"]["hidden"]["kernel"].shape[0] == 2


def test_a_bump_is_one_on_its_box_and_nothing_far_away():
    low, high = np.array([0.0, -1.0, 2.0]), np.array([1.0, -0.5, 2.0])
    net = selections.bump(low, high, 0.25)
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 3, (4000, 3))
    away = np.maximum(np.maximum(low - x, x - high), 0).sum(1)
    np.testing.assert_allclose(evaluated(net, x), np.maximum(1 - away / 0.25, 0), atol=1e-14)
    inside = low + (high - low) * rng.uniform(size=(50, 3))
    np.testing.assert_array_equal(evaluated(net, inside), 1)


def test_bad_input():
    with pytest.raises(ValueError, match="eps is 0; want a positive number"):
        constructions.approximate(jnp.exp, 0, UNIT)
    with pytest.raises(ValueError, match=r"interval is \(1.0, 0.0\); want finite numbers"):
        constructions.approximate(jnp.exp, 0.1, (1.0, 0.0))
    with pytest.raises(ValueError, match=r"f has no bound near 0.3.* it jumps there, is no number"):
        constructions.approximate(lambda x: jnp.where(x < 0.3, 0.0, 1.0), 0.1, UNIT)
    with pytest.raises(ValueError, match="f has no bound near"):
        constructions.approximate(jnp.log, 0.1, (-1.0, 1.0))
    with pytest.raises(ValueError, match="f is no number at -1"):
        constructions.approximate(jnp.sqrt, 0.1, (-1.0, 1.0), lipschitz=1.0)
    with pytest.raises(ValueError, match="n is 1 and slope inf; want two treads or more"):
        constructions.staircase(jnp.exp, 1, UNIT)
    with pytest.raises(TypeError, match=r"m is 1.5, a float; want a positive integer"):
        constructions.square(1.5)
    with pytest.raises(ValueError, match=r"margin is 0.0; want a positive number"):
        selections.bump([0.0], [1.0], 0.0)
    with pytest.raises(ValueError, match="want the corners of a box"):
        selections.bump([2.0], [1.0], 0.1)
    with pytest.raises(NotImplementedError, match="no interval rule for the primitive 'lgamma'"):
        constructions.interpolant(jax.scipy.special.gammaln, 3, (1.0, 2.0))
