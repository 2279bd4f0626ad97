"""Enclosures hold every value, of floats and of reals, and close in on the range."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from dltheory.networks import activations as catalogue
from dltheory.numerics import intervals
from tests.facts import FACTS
from tests.tier import cases

LARGEST = float(np.finfo(np.float64).max)


@jax.custom_jvp
def straight_through(h):
    return jnp.sin(3 * h)


straight_through.defjvp(lambda h, t: (straight_through(*h), t[0]))


@jax.custom_vjp
def clipped_backwards(h):
    return 5 * h


clipped_backwards.defvjp(lambda h: (5 * h, None), lambda _, ct: (jnp.clip(ct, -1, 1),))


def looped(h):
    return lax.scan(lambda c, w: (jnp.tanh(w * c + h), c * w), h, jnp.array([1.0, -2.0, 0.5]))[0]


def run_backwards(h):
    rows = lax.scan(lambda c, w: (c * w, c + w), h, jnp.array([1.0, -2.0, 0.5]), reverse=True)[1]
    return rows[0] - 2 * rows[2]


# Functions of one number, every primitive at least once.
UNARY = {
    "arithmetic": lambda h: (h + 0.1) * (2 - h) / (1.3 + h * h),
    "exp": lambda h: jnp.exp(h) - jnp.exp2(-h) + jnp.expm1(h / 2),
    "log": lambda h: jnp.log(1 + h * h) - jnp.log1p(jnp.abs(h)),
    "saturating": lambda h: jnp.tanh(h) + jax.nn.sigmoid(-2 * h) * jnp.arctan(h),
    "erf": lambda h: lax.erf(h) - lax.erfc(h / 3),
    "waves": lambda h: jnp.sin(h) + jnp.cos(2 * h + 1),
    "roots": lambda h: jnp.sqrt(jnp.abs(h)) + lax.rsqrt(1 + jnp.square(h)),
    "powers": lambda h: h**3 - h**4 / 7 + (1 + h * h) ** -2 + jnp.abs(h) ** 1.5,
    "varying power": lambda h: jnp.exp(-h) * (2 + jnp.sin(h)) ** h,
    "sinh": lambda h: jnp.sinh(h / 9),
    "steps": lambda h: jnp.sign(h) + jnp.floor(h) - jnp.ceil(h / 2) + jnp.heaviside(h, 0.5),
    "cases": lambda h: jnp.where((h > 1) | ~(h >= -1), h * h, jnp.minimum(h, 0.5)),
    "equality": lambda h: jnp.where(h == 1, 7.0, jnp.where((h != 2) & (h <= 3), h, -h)),
    "mask": lambda h: (h > 0.3).astype(h.dtype) * h + jnp.trunc(h).astype(int).astype(h.dtype),
    "cancelling": lambda h: (h - h) + 1,
    "clamp": lambda h: lax.clamp(-1.0, h, 2.0) + jnp.clip(h, -0.5, 0.5),
    "branches": lambda h: lax.cond(h > 0, jnp.sin, lambda h: h * h, h),
    "stop": lambda h: lax.stop_gradient(h) * h + jax.checkpoint(jnp.tanh)(h),
    "custom_jvp": straight_through,
    "custom_vjp": clipped_backwards,
    "scan": looped,
    "scan backwards": run_backwards,
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "mish": jax.nn.mish,
    "mish'": jax.grad(jax.nn.mish),
    "softplus''": jax.grad(jax.grad(jax.nn.softplus)),
    "relu6'": jax.grad(jax.nn.relu6),
    "selu": jax.nn.selu,
    "log_softmax": lambda h: jax.nn.log_softmax(jnp.stack([h, -h, 2 * h]))[1],
    "shapes": lambda h: jnp.sum(
        jnp.pad(jnp.concatenate([jnp.stack([h, h * h])[::-1], jnp.ones(2)]), (1, 1))[2:5].T
    ),
    "gathered": lambda h: jnp.stack([h, -h, 3 * h])[jnp.array([2, 0, 2])].max(),
    "dynamic": lambda h: lax.dynamic_slice(jnp.stack([h, -h, 3 * h]), (1,), (2,)).min(),
    "parts": lambda h: sum(p @ p[::-1] for p in jnp.split(jnp.stack([h, 1 - h, 3 * h, -h]), 2)),
    "all": lambda h: jnp.where(jnp.all(jnp.stack([h > 0, h < 1])), h, -h),
}


def boxes(rng, count):
    """Boxes of all widths, many with an end at a whole number, some of them points."""
    centre = rng.normal(size=count) * 10.0 ** rng.uniform(-2, 1, count)
    width = 10.0 ** rng.uniform(-12, 1, count) * rng.integers(0, 2, count)
    low = np.where(rng.random(count) < 0.4, np.round(centre), centre)
    return low, low + width


@pytest.mark.parametrize("name", UNARY)
def test_enclosures_hold_what_jax_computes(name):
    fn, rng = UNARY[name], np.random.default_rng(0)
    low, high = boxes(rng, cases(4000))
    low, high = np.clip(low, -20, 20), np.clip(high, -20, 20)
    f = intervals.enclosure(fn)
    plain, best = f.natural(low, high)[0], f(low, high)
    assert not np.isnan(plain.lower).any()
    parts = np.concatenate([[0, 1], rng.random(6)])[:, None]
    points = np.clip(low + parts * (high - low), low, high)
    values = np.asarray(jax.jit(jax.vmap(fn))(points.reshape(-1))).reshape(points.shape)
    assert (plain.lower <= values).all()
    assert (values <= plain.upper).all()
    # The other forms are about the real function: a float may stray by its own rounding.
    stray = 1e-13 * (1 + np.abs(values) + np.abs(plain.lower) + np.abs(plain.upper))
    assert (best.lower <= values + stray).all()
    assert (values - stray <= best.upper).all()
    assert (best.lower >= plain.lower).all()
    assert (best.upper <= plain.upper).all()


finite = st.floats(-1e150, 1e150)


@given(finite, finite, finite, finite)
def test_arithmetic_is_rounded_outward(a, b, c, d):
    point = np.array([[a, b, c, d]])
    f = intervals.enclosure(lambda x: (x[0] + x[1]) * x[2] - x[3], point[0])
    lower, upper = (Fraction(float(end[0])) for end in f.natural(point, point)[0])
    exact = (Fraction(a) + Fraction(b)) * Fraction(c) - Fraction(d)
    assert lower <= exact <= upper


@given(finite, finite.filter(lambda b: abs(b) > 1e-150), st.floats(0, 1e300))
def test_quotients_and_roots_are_rounded_outward(a, b, c):
    point = np.array([[a, b]])
    f = intervals.enclosure(lambda x: x[0] / x[1], point[0])
    lower, upper = (Fraction(float(end[0])) for end in f.natural(point, point)[0])
    assert lower <= Fraction(a) / Fraction(b) <= upper
    f = intervals.enclosure(jnp.sqrt)
    lower, upper = (Fraction(float(end[0])) for end in f.natural(*[np.array([c])] * 2)[0])
    assert lower**2 <= Fraction(c) <= upper**2


LIBRARY = {
    jnp.exp: mpmath.exp,
    jnp.exp2: lambda h: mpmath.mpf(2) ** h,
    jnp.expm1: mpmath.expm1,
    jnp.tanh: mpmath.tanh,
    jax.nn.sigmoid: lambda h: 1 / (1 + mpmath.exp(-h)),
    lax.erf: mpmath.erf,
    lax.erfc: mpmath.erfc,
    jnp.sin: mpmath.sin,
    jnp.cos: mpmath.cos,
    jnp.arctan: mpmath.atan,
    jnp.sinh: mpmath.sinh,
    lambda h: jnp.log(jnp.abs(h)): lambda h: mpmath.log(abs(h)),
    lambda h: jnp.log1p(jnp.abs(h)): lambda h: mpmath.log1p(abs(h)),
    lambda h: jnp.abs(h) ** -2.5: lambda h: mpmath.mpf(abs(h)) ** -2.5,
    lambda h: h**-3: lambda h: mpmath.mpf(h) ** -3,
    lambda h: lax.rsqrt(jnp.abs(h)): lambda h: 1 / mpmath.sqrt(abs(h)),
}


@pytest.mark.parametrize("fn", LIBRARY)
def test_library_functions_are_enclosed_to_forty_digits(fn):
    rng = np.random.default_rng(1)
    points = rng.normal(size=cases(2000)) * 10.0 ** rng.uniform(-9, 3, cases(2000))
    lower, upper = intervals.enclosure(fn).natural(points, points)[0]
    with mpmath.workdps(40):
        for h, low, high in zip(points, lower, upper, strict=True):
            exact = LIBRARY[fn](mpmath.mpf(float(h)))
            assert mpmath.mpf(float(low)) <= exact <= mpmath.mpf(float(high))
    known = np.isfinite(upper) & np.isfinite(lower) & (np.abs(lower) > 1e-290)
    assert np.max((upper - lower)[known] / (1 + np.abs(lower[known]))) < 1e-10


STEPS = {
    "tanh": (jnp.tanh, mpmath.tanh),
    "sin": (jnp.sin, mpmath.sin),
    "softplus": (jax.nn.softplus, lambda h: mpmath.log1p(mpmath.exp(-abs(h))) + max(h, 0)),
    "relu": (jax.nn.relu, lambda h: max(h, mpmath.mpf(0))),
    "square": (lambda h: h * h, lambda h: h * h),
    "erf": (lax.erf, mpmath.erf),
    "mean": (lambda h: h / (1 + jnp.abs(h)), lambda h: h / (1 + abs(h))),
}


@settings(max_examples=cases(300))
@given(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4),
    st.floats(-3, 3),
    st.floats(0, 2),
    st.floats(0, 1),
    st.floats(-2, 2),
)
def test_compositions_are_enclosed(names, low, width, part, scale):
    def fn(h, at=0):
        for name in names:
            h = scale * STEPS[name][at](h) - h
        return h

    high = low + width
    bracket = intervals.bounds(fn, low, high)
    point = min(max(low + part * width, low), high)
    with mpmath.workdps(40):
        exact = fn(mpmath.mpf(point), 1)
        assert mpmath.mpf(float(bracket.lower)) <= exact <= mpmath.mpf(float(bracket.upper))


def test_the_three_forms_beat_the_natural_one():
    fn = lambda h: h - jnp.tanh(h)
    f = intervals.enclosure(fn)
    low, high = np.array([1.0]), np.array([1.1])
    plain, best = f.natural(low, high)[0], f(low, high)
    truth = np.array([1 - np.tanh(1), 1.1 - np.tanh(1.1)])
    assert (plain.upper - plain.lower)[0] > 0.13
    np.testing.assert_allclose([best.lower[0], best.upper[0]], truth, rtol=1e-13)  # it rises
    # The centred form is of second order: a tenth of the width is a hundredth of the excess.
    bump = intervals.enclosure(lambda h: h * h - h**3)
    half = np.array([1e-2, 1e-3])
    wide = bump(2 / 3 - half, 2 / 3 + half)
    excess = wide.upper - 4 / 27
    assert 50 < excess[0] / excess[1] < 200


@pytest.mark.parametrize(
    ("fn", "wanted"),
    [
        (lambda h: jnp.where(h > 0.37, 1.0, 0.0), (0, 1)),
        (lambda h: (h > 0.37).astype(h.dtype), (0, 1)),
        (lambda h: jnp.floor(h + 0.63), (-1, 1)),
        (jnp.sign, (-1, 1)),
        (lambda h: jnp.trunc(2 * h).astype(jnp.int32).astype(h.dtype), (-2, 2)),
        (lambda h: lax.cond(h > 0.37, lambda: 1.0, lambda: 0.0), (0, 1)),
        (straight_through, (-1, 1)),
        (clipped_backwards, (-5, 5)),
        (lambda h: 4 * lax.stop_gradient(h), (-4, 4)),
        (lambda h: jnp.tanh(1 / h), (-1, 1)),
    ],
)
def test_derivatives_that_are_none_are_not_believed(fn, wanted):
    found = intervals.range_of(fn, -1.0, 1.0, tol=1e-6, max_boxes=5000)
    assert found.infimum.lower <= wanted[0] <= found.infimum.upper + 1e-6
    assert found.supremum.lower - 1e-6 <= wanted[1] <= found.supremum.upper


@pytest.mark.parametrize(
    ("fn", "low", "high", "infimum", "supremum"),
    [
        (lambda h: h * (1 - h), 0.0, 1.0, 0.0, 0.25),
        (lambda h: jnp.sin(h) + jnp.sin(3 * h), -4.0, 4.0, -(8 / 3**1.5), 8 / 3**1.5),
        (lambda h: jnp.exp(-h * h), -LARGEST, LARGEST, 0.0, 1.0),
        (lambda h: h**3 / 3 - h, -2.0, 2.0, -2 / 3, 2 / 3),
        (lambda x: jnp.sum(x**2) - x[0] * x[1], np.full(2, -1.0), np.ones(2), 0.0, 3.0),
        (lambda x: jnp.sin(x[0]) * jnp.cos(x[1]), np.zeros(2), np.full(2, 3.0), np.cos(3), 1.0),
        (lambda x: (1 - x[0])**2 + 5 * (x[1] - x[0]**2)**2,
         np.zeros(2), 1.5 * np.ones(2), 0, 25.5625),
        (lambda x: jnp.max(x) + x[0] * x[1], np.zeros(2), np.ones(2), 0.0, 2.0),
    ],
)  # fmt: skip
def test_ranges_close_in_on_closed_forms(fn, low, high, infimum, supremum):
    found = intervals.range_of(fn, low, high, tol=1e-6)
    assert found.certified
    for bracket, exact in ((found.infimum, infimum), (found.supremum, supremum)):
        assert bracket.lower <= exact + 1e-14
        assert exact - 1e-14 <= bracket.upper
        assert bracket.upper - bracket.lower <= 1.0001e-6 * max(1, abs(exact))


def facts():
    """Extreme values, slopes and curvatures in the facts file: a function and which end."""
    phi = {name: catalogue.get(name).fn for name in ("gelu", "gelu_tanh", "silu", "mish", "erf")}
    phi |= {name: catalogue.get(name).fn for name in ("tanh", "sigmoid", "sin", "softsign")}
    slope = {name: jax.grad(fn) for name, fn in phi.items()}
    curvature = {name: jax.grad(slope[name]) for name in ("gelu", "tanh", "sigmoid")}
    table = {f"act.{name}.min": (phi[name], 0) for name in ("gelu", "gelu_tanh", "mish")}
    table |= {f"act.{name}.min_slope": (slope[name], 0) for name in ("gelu", "silu")}
    steep = ("gelu", "gelu_tanh", "erf", "tanh", "sin", "softsign")
    table |= {f"act.{name}.lipschitz": (slope[name], 1) for name in steep}
    table |= {f"act.{name}.second_derivative_max": (fn, 1) for name, fn in curvature.items()}
    error = lambda h: jnp.abs(phi["gelu"](h) - phi["gelu_tanh"](h))
    return table | {"act.gelu_tanh.max_abs_error": (error, 1)}


@pytest.mark.parametrize("fact", facts())
def test_certified_extremes_agree_with_the_facts(fact):
    fn, end = facts()[fact]
    # The second derivative of softsign jumps at 0; no other function here has a kink.
    bracket = intervals.range_of(fn, -6.0, 6.0, tol=2e-10, without=(0.0,))[end]
    if fact.endswith("second_derivative_max"):
        bracket = jax.tree.map(abs, bracket)
    for bound in bracket:
        np.testing.assert_allclose(bound, FACTS[fact]["value"], rtol=1e-9, atol=2e-10)


@pytest.mark.parametrize("phi", [jnp.tanh, jax.nn.relu])
def test_a_small_network_on_a_square(phi):
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(2, 8)), rng.normal(size=(8, 4))
    u, b = rng.normal(size=4), rng.normal(size=8)
    net = lambda x: phi(phi(x @ w + b) @ v) @ u
    found = intervals.range_of(net, -np.ones(2), np.ones(2), tol=1e-2)
    grid = np.linspace(-1, 1, 201)
    values = jax.jit(jax.vmap(net))(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2))
    assert found.certified
    assert found.infimum.lower <= values.min() <= found.infimum.upper + 2e-2
    assert found.supremum.lower - 2e-2 <= values.max() <= found.supremum.upper


DOTS = {
    "matrix": (lambda x: jnp.sum(x.reshape(2, 3) @ np.arange(12.0).reshape(3, 4) - 5)),
    "left": (lambda x: jnp.max(np.arange(8.0).reshape(4, 2) @ x.reshape(2, 3))),
    "both": (lambda x: jnp.sum(jnp.sin(x.reshape(2, 3).T @ x.reshape(2, 3)))),
    "batch": (lambda x: jnp.einsum("abc,abd->", x.reshape(2, 1, 3), x.reshape(2, 1, 3) - 1)),
    "batch of matrices": (
        lambda x: jnp.einsum("abc,acd->abd", x.reshape(2, 1, 3), np.ones((2, 3, 2))).min()
    ),
    "transpose": (lambda x: jnp.vdot(x.reshape(2, 3).T, jnp.broadcast_to(x[:3, None], (3, 2)))),
}


@pytest.mark.parametrize("name", DOTS)
def test_contractions_are_enclosed(name):
    rng = np.random.default_rng(2)
    low = rng.normal(size=(20, 6))
    high = low + rng.random((20, 6)) * 10.0 ** rng.uniform(-6, 0, (20, 1))
    lower, upper = intervals.enclosure(DOTS[name], low[0])(low, high)
    points = low + rng.random((50, 20, 6)) * (high - low)
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(DOTS[name])))(points))
    assert (lower <= values).all()
    assert (values <= upper).all()
    assert np.median((upper - lower) / np.ptp(values, axis=0)) < 20


def test_a_spent_budget_is_said_and_its_bounds_hold():
    fn = lambda h: jnp.sin(50 * h) * jnp.exp(-h)
    found = intervals.range_of(fn, 0.0, 3.0, tol=1e-12, max_boxes=20)
    assert not found.certified
    best = np.asarray(jax.vmap(fn)(np.linspace(0, 3, 10_001)))
    assert found.infimum.lower <= best.min()
    assert best.max() <= found.supremum.upper
    assert found.boxes <= 40


def test_unbounded_boxes():
    assert intervals.bounds(jnp.tanh, -np.inf, np.inf) == (-1, 1)
    assert intervals.bounds(jax.nn.relu, -np.inf, -1.0) == (0, 0)
    lower, upper = intervals.bounds(jax.nn.softplus, 3.0, np.inf)
    assert 3 - 1e-9 < lower < np.log1p(np.exp(3)) + 1e-9
    assert upper == np.inf


def test_points_left_out_leave_no_float_beside_them():
    slope = jax.grad(jax.nn.celu)  # the sum of two gates that both open at 0
    assert not intervals.range_of(slope, -1.0, 1.0).certified
    found = intervals.range_of(slope, -1.0, 1.0, without=(0.0, 5.0))
    assert found.certified
    np.testing.assert_allclose(found.supremum, 1, rtol=1e-8)


@pytest.mark.usefixtures("float32")
def test_bounds_are_not_rounded_inwards_in_single_precision():
    bracket = intervals.bounds(lambda h: h / 3, 0.1, 1.0)
    assert bracket.lower.dtype == bracket.upper.dtype == np.float64
    assert (
        Fraction(float(bracket.lower))
        <= Fraction(0.1) / 3
        <= Fraction(float(bracket.lower)) * (1 + Fraction(1, 10**15))
    )
    weights = jnp.float32([1.0, 0.1])
    single = intervals.bounds(lambda x: x @ weights, jnp.zeros(2), jnp.ones(2))
    assert single.upper >= Fraction(1) + Fraction(float(weights[1]))


def test_what_has_no_rule_is_named():
    with pytest.raises(NotImplementedError, match="no interval rule for the primitive 'lgamma'"):
        intervals.bounds(lax.lgamma, 1.0, 2.0)
    with pytest.raises(NotImplementedError, match="no interval rule for the primitive 'while'"):
        intervals.bounds(lambda h: lax.while_loop(lambda c: c < 9, lambda c: c * c, h), 2.0, 3.0)
    with pytest.raises(NotImplementedError, match="'dynamic_slice' at an index that varies"):
        intervals.bounds(
            lambda h: lax.dynamic_slice(jnp.ones(3), (h.astype(int),), (1,))[0], 0.0, 1.0
        )


def test_bad_functions_are_refused():
    with pytest.raises(TypeError, match=r"fn must return one scalar; it returned .*shape=\(2,\)"):
        intervals.bounds(lambda h: jnp.stack([h, h]), 0.0, 1.0)
    with pytest.raises(TypeError, match="real floating-point numbers; it returned int"):
        intervals.bounds(lambda h: h.astype(int), 0.0, 1.0)
    with pytest.raises(TypeError, match="real floating-point numbers; it returned complex128"):
        intervals.bounds(lambda h: lax.complex(h, h), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"fn is NaN at -1\.0; narrow the box"):
        intervals.range_of(jnp.log, -1.0, 1.0)
    assert np.isnan(intervals.bounds(jnp.log, -1.0, 1.0)).all()


def test_bad_boxes_are_refused():
    for low, high in ((1.0, 0.0), (np.zeros(2), np.ones(3)), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="must be corners of one shape with lower <= upper"):
            intervals.bounds(jnp.sin, low, high)
    with pytest.raises(ValueError, match=r"a box has shape \(\) or \(d,\), got \(1, 1\)"):
        intervals.bounds(jnp.sum, np.zeros((1, 1)), np.ones((1, 1)))
    with pytest.raises(ValueError, match=r"points of the line; this box has shape \(2,\)"):
        intervals.range_of(jnp.sum, np.zeros(2), np.ones(2), without=(0.5,))
