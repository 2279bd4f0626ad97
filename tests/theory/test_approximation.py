"""Errors of targets against the facts, closed forms and mpmath; which facts are covered."""

import itertools
import re
from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from dltheory.measure import regions as measured_regions
from dltheory.theory import approximation, constructions, rates, regions
from tests.facts import FACTS, assert_agrees
from tests.tier import FULL, cases

UNIT = (0.0, 1.0)
TARGETS = {
    "exp": (jnp.exp, UNIT),
    "sqrt": (jnp.sqrt, UNIT),
    "x3": (lambda x: x**3, UNIT),
    "exp[0,1]": (jnp.exp, UNIT),
    "sqrt[0,1]": (jnp.sqrt, UNIT),
    "sin(2 pi x)[0,1]": (lambda x: jnp.sin(2 * jnp.pi * x), UNIT),
    "gauss exp(-x^2/2)[-3,3]": (lambda x: jnp.exp(-(x**2) / 2), (-3.0, 3.0)),
}
NUMERIC = [i for i in FACTS if i.startswith("ap.") and FACTS[i]["value"] is not True]


def square(x):
    return x**2


def compiled(error, *args, **options):
    """One compilation instead of one for every operation."""
    return jax.jit(lambda: error(*args, **options))()


@cache
def constant_of_the_square(norm):
    return approximation.free_knot_constant(square, UNIT, norm=norm)


def pieces(net):
    point = lambda x: jnp.array([x])
    return measured_regions.count_on_line(net.apply, net.params, point(0.0), point(1.0))


def bounds_of_regions(fact_id):
    given = FACTS[fact_id]["inputs"]
    counts = (regions.montufar_lower, regions.montufar_upper, regions.serra_upper)
    return [count(given["n0"], given["widths"]) for count in counts]


# The pattern of an id, and what to call with the numbers in it.
TABLE = [
    (
        r"ap\.x2\.interp\.n(\d+)",
        lambda n: [
            compiled(approximation.interpolation_error, square, n, UNIT, norm=norm)
            for norm in ("sup", "l2")
        ],
    ),
    (
        r"ap\.x2\.best\.n(\d+)",
        lambda n: [constant_of_the_square(norm) / n**2 for norm in ("sup", "l2")],
    ),
    (
        r"ap\.freeknot\.const\.(.+)",
        lambda name: compiled(approximation.free_knot_constant, *TARGETS[name]),
    ),
    (
        r"ap\.freeknot\.(exp|sqrt|x3)\.n(\d+)",
        lambda name, n: approximation.best_piecewise_linear_error(
            TARGETS[name][0], n, TARGETS[name][1]
        ),
    ),
    (
        r"ap\.freeknot\.l2",
        lambda: approximation.free_knot_constant(jnp.exp, UNIT, norm="l2"),
    ),
    (
        r"ap\.sqrt\.uniform",
        lambda: compiled(approximation.interpolation_error, jnp.sqrt, 16, UNIT) / 2,
    ),
    (r"ap\.heaviside\.n", lambda: approximation.staircase_error(jnp.exp, 10, UNIT)),
    (r"ap\.bernstein\.x2\.(\d+)", lambda n: compiled(approximation.bernstein_error, square, n)),
    (
        r"ap\.bernstein\.abs\.(\d+)",
        lambda n: compiled(approximation.bernstein_error, lambda x: jnp.abs(x - 0.5), n),
    ),
    (r"ap\.barron\.gauss\.d(\d+)", approximation.gaussian_barron_norm),
    (r"ap\.sigmoid\.step\.L1\.(\d+)", rates.sigmoid_step_distance),
    (r"ap\.softplus\.relu\.(\d+)", rates.softplus_relu_distance),
    (r"ap\.xtanh\.abs", lambda: rates.gated_abs_distance(1.0)),
    (r"ap\.rates\.d(\d+)", lambda d: rates.worst_case_exponents(d, smoothness=2)),
    (
        r"ap\.siegelxu\.d(\d+)",
        lambda d: [rates.dictionary_exponent(d, power=k) for k in range(3)],
    ),
    (r"ap\.favard\.(\d+)", rates.favard_constant),
    (r"ap\.zaslavsky\.(\d+)\.(\d+)", regions.zaslavsky),
    (r"ap\.cover", lambda: regions.cover(10, 3)),
    (r"(ap\.regions\..+)", bounds_of_regions),
    (
        r"ap\.breaks1d\.layer(\d+)",
        lambda layer: [
            regions.expected_breakpoints(layer, *ends, bias_var=1.0)
            for ends in ((), ((-1.0, 1.0),))
        ],
    ),
    (
        r"ap\.breaks1d\.net",
        lambda: regions.expected_pieces((50, 50, 50), (-1.0, 1.0), bias_var=1.0),
    ),
    (
        r"ap\.max\.depth",
        lambda: [regions.piecewise_linear_depth(d) for d in (2, 3, 7, 8)],
    ),
    (r"ap\.yarotsky\.m(\d+)", lambda m: constructions.square(m).bound),
    (r"ap\.multiply\.m(\d+)", lambda m: constructions.product(m).bound),
    (r"ap\.telgarsky\.k(\d+)", lambda k: pieces(constructions.tent(k))),
]
# Remez's algorithm is not here; how far a tent is from a constant is a fact of integration.
UNCOVERED = {"ap.poly.abs.E6", "ap.tent.l1"}
CALLS = {
    i: (call, [int(g) if g.isdigit() else g for g in match.groups()])
    for i in NUMERIC
    for pattern, call in TABLE
    if (match := re.fullmatch(pattern, i))
}


# Each of these is a compilation: the quick tier takes every sixth.
HEAVY = [i for i in CALLS if re.match(r"ap\.(x2|freeknot|bernstein|telgarsky|multiply)", i)]
LEFT_OUT = set() if FULL else {*HEAVY} - {*HEAVY[::6]}


@pytest.mark.parametrize("fact_id", [i for i in CALLS if i not in LEFT_OUT])
def test_agrees_with_the_facts(fact_id):
    call, groups = CALLS[fact_id]
    assert_agrees(fact_id, call(*groups))


def test_the_facts_are_covered():
    assert set(NUMERIC) - set(CALLS) == UNCOVERED
    assert len(CALLS) >= 0.95 * len(NUMERIC)


def test_the_best_error_approaches_its_constant():
    for name in ("exp", "x3")[: cases(10)]:
        f, interval = TARGETS[name]
        error = approximation.best_piecewise_linear_error(f, 64, interval)
        constant = compiled(approximation.free_knot_constant, f, interval)
        np.testing.assert_allclose(error * 64**2, constant, rtol=4e-3, err_msg=name)


def test_the_ripple_alternates():
    """At the knots of exp the fit lies below by the error; between them it is above by as much."""
    error, knots = approximation.equal_ripple(jnp.exp, 5, (-1.0, 2.0))
    x = jnp.linspace(-1, 2, 30001)
    gap = jnp.interp(x, knots, jnp.exp(knots) - error) - jnp.exp(x)
    np.testing.assert_allclose(jnp.max(gap), error, rtol=1e-6)
    np.testing.assert_allclose(jnp.min(gap), -error, rtol=1e-12)


def bent(x):
    return jnp.abs(x - 0.3)


@pytest.mark.parametrize(
    ("f", "n", "wanted"),
    [(bent, 1, 0.21), (lambda x: -bent(x), 2, 0.0), (lambda x: 3 * x + 1, 2, 0.0)][: cases(10)],
)
def test_the_best_error_of_kinked_targets(f, n, wanted):
    error = approximation.best_piecewise_linear_error(f, n, UNIT)
    np.testing.assert_allclose(error, wanted, rtol=1e-12, atol=1e-12)


def test_interpolation_of_a_wave():
    """Against mpmath, piece by piece; and how the error changes with the interval's end."""
    error = lambda b: approximation.interpolation_error(jnp.sin, 3, (0.0, b))
    slope_at = jax.jit(jax.grad(error))
    error = jax.jit(error)
    edges = [mpmath.mpf(5) * k / 3 for k in range(4)]
    wanted = 0
    for low, high in itertools.pairwise(edges):
        slope = (mpmath.sin(high) - mpmath.sin(low)) / (high - low)
        for turn in (mpmath.acos(slope), 2 * mpmath.pi - mpmath.acos(slope)):
            if low < turn < high:
                gap = mpmath.sin(turn) - mpmath.sin(low) - slope * (turn - low)
                wanted = max(wanted, abs(gap))
    np.testing.assert_allclose(error(5.0), float(wanted), rtol=1e-13)
    central = (error(5.0 + 1e-5) - error(5.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope_at(5.0), central, rtol=1e-7)


def test_constants_are_differentiable_in_the_interval():
    constant = lambda b: approximation.free_knot_constant(jnp.exp, (0.0, b))
    root = np.exp(0.5)
    np.testing.assert_allclose(jax.jit(jax.grad(constant))(1.0), (root - 1) * root / 4, rtol=1e-10)


def test_a_kink_is_left_out_of_the_constant():
    bent = lambda x: jnp.where(x < 0.3, 0.0, 1.0) * x + x**2
    constant = compiled(approximation.free_knot_constant, bent, UNIT, kinks=(0.3,))
    np.testing.assert_allclose(constant, 1 / 8, rtol=1e-12)


def test_a_staircase_has_half_the_variation():
    wave = lambda x: jnp.sin(2 * jnp.pi * x)
    np.testing.assert_allclose(approximation.staircase_error(wave, 8, UNIT), 0.25, rtol=1e-12)


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    for value, wanted in (
        (compiled(approximation.free_knot_constant, jnp.sqrt, UNIT), 0.25),
        (compiled(approximation.interpolation_error, square, 4, UNIT), 1 / 64),
    ):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match=r"interval is \(1.0, 0.0\); want finite numbers \(a, b\)"):
        approximation.interpolation_error(jnp.exp, 3, (1.0, 0.0))
    with pytest.raises(ValueError, match=r"interval is 3; want two numbers"):
        approximation.staircase_error(jnp.exp, 3, 3)
    with pytest.raises(ValueError, match="n is 0; want a positive integer"):
        approximation.equal_ripple(jnp.exp, 0, UNIT)
    with pytest.raises(ValueError, match="norm is 'l1'; want one of sup, l2"):
        approximation.free_knot_constant(jnp.exp, UNIT, norm="l1")
    with pytest.raises(ValueError, match=r"f must be convex or concave on \(0.0, 7.0\)"):
        approximation.best_piecewise_linear_error(jnp.sin, 3, (0.0, 7.0))
    with pytest.raises(TypeError, match="f must map a scalar to a scalar"):
        approximation.interpolation_error(lambda x: jnp.stack([x, x]), 3, UNIT)
    with pytest.raises(ValueError, match=r"norm must be zero or more; got -1.0"):
        approximation.barron_rate(-1.0, 4)
    assert jnp.isnan(
        jax.jit(lambda b: approximation.interpolation_error(jnp.exp, 3, (1.0, b)))(0.0)
    )
    assert jnp.isnan(compiled(approximation.interpolation_error, jnp.log, 3, (-1.0, 1.0)))
