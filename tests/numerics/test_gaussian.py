"""Gaussian averages against closed forms, mpmath, scipy and their own symmetries."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.scipy.special import erf
from scipy import special, stats

from dltheory.numerics import gaussian
from tests.tier import FULL, cases

VARIANCES = jnp.array([1e-12, 1e-4, 0.1, 1.0, 10.0, 1e2, 1e4, 1e6])
RHOS = jnp.array([-1.0, -1 + 1e-6, -0.9, -0.3, 0.0, 0.5, 0.99, 1 - 1e-6, 1 - 1e-12, 1.0])
relu = lambda h: jnp.maximum(h, 0)
step = lambda h: jnp.heaviside(h, 0.0)
hard_tanh = lambda h: jnp.clip(h, -1, 1)
inside = lambda h: (jnp.abs(h) < 1).astype(h.dtype)


@pytest.mark.parametrize(
    ("g", "kinks", "closed"),
    [
        (lambda h: relu(h) ** 2, (0.0,), lambda v: v / 2),
        (lambda h: erf(h) ** 2, (), lambda v: 2 / np.pi * np.arcsin(2 * v / (1 + 2 * v))),
        (inside, (-1.0, 1.0), lambda v: special.erf(np.sqrt(0.5 / v))),
        (lambda h: jnp.abs(h - 3), (3.0,), lambda v: folded_mean(3.0, v)),
    ],
    ids=["relu2", "erf2", "inside", "shifted"],
)
def test_expectation_equals_closed_form_at_every_scale(g, kinks, closed):
    v = np.asarray(VARIANCES)
    np.testing.assert_allclose(
        gaussian.expectation(g, VARIANCES, kinks=kinks), closed(v), rtol=1e-13
    )


def folded_mean(shift, v):
    s = np.sqrt(v)
    return 2 * s * stats.norm.pdf(shift / s) + shift * (1 - 2 * stats.norm.cdf(-shift / s))


@pytest.mark.parametrize("var", [0.01, 1.0, 100.0, 1e4])
def test_expectation_of_a_steep_smooth_function_equals_mpmath(var):
    density = lambda z: mpmath.exp(-z * z / 2) * mpmath.sqrt(2 / mpmath.pi)
    cuts = [0, *(mpmath.mpf(2) ** k for k in range(-9, 4)), mpmath.inf]
    with mpmath.workdps(25):
        s = mpmath.sqrt(var)
        wanted = mpmath.quad(lambda z: mpmath.tanh(s * z) ** 2 * density(z), cuts)
    value = gaussian.expectation(lambda h: jnp.tanh(h) ** 2, var)
    np.testing.assert_allclose(value, float(wanted), rtol=2e-15 * 20)


@settings(max_examples=cases(200))
@given(st.floats(-6, 6), st.floats(1e-6, 1e4), st.floats(-2, 2), st.floats(-2, 2))
def test_expectation_of_a_line_broken_anywhere(kink, var, left, right):
    """From the first two partial moments of the Gaussian."""
    g = lambda h: jnp.where(h > kink, right, left) * (h - kink)
    std = np.sqrt(var)
    above, density = stats.norm.sf(kink / std), stats.norm.pdf(kink / std)
    up, down = std * density - kink * above, -std * density - kink * (1 - above)
    np.testing.assert_allclose(
        gaussian.expectation(g, var, kinks=(kink,)),
        right * up + left * down,
        rtol=0,
        atol=1e-13 * (std + abs(kink)),
    )


def test_an_object_brings_its_own_kinks():
    class Kinked:
        kinks = (1.0,)

        def __call__(self, h):
            return jnp.abs(h - 1)

    np.testing.assert_allclose(gaussian.expectation(Kinked()), folded_mean(1.0, 1.0), rtol=1e-14)


def test_derivatives_in_the_variance_count_kinks_and_jumps():
    """By the heat equation: half the mean second derivative, Dirac masses included."""
    v = np.asarray(VARIANCES[2:6])
    density = stats.norm.pdf(1 / np.sqrt(v)) / np.sqrt(v)

    def slope(g, kinks):
        mean = lambda v: gaussian.expectation(g, v, kinks=kinks)
        return jax.jit(lambda v: jax.jvp(mean, (v,), (jnp.ones_like(v),))[1])(v)

    jump = density / v / 2  # half of -density'(1)
    kink = density / 2
    np.testing.assert_allclose(slope(lambda h: step(h - 1), (1.0,)), jump, rtol=1e-12)
    np.testing.assert_allclose(slope(lambda h: relu(h - 1), (1.0,)), kink, rtol=1e-12)
    np.testing.assert_allclose(slope(jnp.cosh, ()), np.exp(v / 2) / 2, rtol=1e-11)


def test_variance_zero_gives_the_value_at_zero():
    assert gaussian.expectation(jnp.cos, 0.0) == 1
    assert gaussian.expectation(lambda h: jnp.abs(h - 2), 0.0, kinks=(2.0,)) == 2
    assert gaussian.expectation(step, 0.0, kinks=(0.0,)) == 0.5  # the limit of small variances
    value = gaussian.pair_expectation(jnp.cos, lambda h: h + 2, 0.0, 1.0, 0.0)
    np.testing.assert_allclose(value, 2.0, rtol=1e-15)


def test_growth_and_nan_are_reported():
    assert gaussian.expectation(lambda h: jnp.exp(h * h)) == jnp.inf
    assert gaussian.expectation(lambda h: -jnp.exp(h * h / 2)) == -jnp.inf
    assert jnp.isnan(gaussian.expectation(lambda h: jnp.sinh(h) * jnp.exp(h * h)))
    np.testing.assert_allclose(
        gaussian.expectation(lambda h: jnp.exp(0.4 * h * h)), 5**0.5, rtol=1e-14
    )
    np.testing.assert_allclose(gaussian.expectation(jnp.exp, 100.0), np.exp(50.0), rtol=1e-13)
    assert jnp.isnan(gaussian.expectation(jnp.log))
    assert jnp.isnan(gaussian.expectation(jnp.cos, jnp.nan))
    assert jnp.isnan(jax.jit(lambda v: gaussian.expectation(jnp.cos, v))(-1.0))
    assert jnp.isnan(jax.jit(lambda c: gaussian.pair_expectation(relu, relu, 1.0, 1.0, c))(1.1))


@pytest.mark.parametrize(("v1", "v2"), [(1.0, 1.0), (1e-6, 10.0), (4.0, 0.3)])
@pytest.mark.parametrize(
    ("g", "kinks", "closed"),
    [
        (step, (0.0,), lambda r, _a, _b: np.arccos(-r) / (2 * np.pi)),
        (
            relu,
            (0.0,),
            lambda r, a, b: np.sqrt(a * b) * (np.sqrt(1 - r * r) + r * np.arccos(-r)) / 2 / np.pi,
        ),
        (
            erf,
            (),
            lambda r, a, b: (
                2 / np.pi * np.arcsin(2 * r * np.sqrt(a * b / (1 + 2 * a) / (1 + 2 * b)))
            ),
        ),
    ],
    ids=["step", "relu", "erf"],
)
def test_pair_expectation_equals_closed_form(g, kinks, closed, v1, v2):
    # The covariance carries 1 - rho only to its rounding, and arccos takes the root of that.
    np.testing.assert_allclose(
        pair(g, g, v1, v2, RHOS * np.sqrt(v1 * v2), kinks=kinks),
        closed(np.asarray(RHOS), v1, v2),
        rtol=1e-12,
        atol=1e-12 if g is not step else 1e-10,
    )


pair = jax.jit(gaussian.pair_expectation, static_argnums=(0, 1), static_argnames="kinks")


def test_pair_expectation_with_several_kinks_equals_the_bivariate_normal():
    """P(|u| < 1, |v| < 1) from scipy's cumulative distribution."""
    corner = lambda rho, a, b: stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([a, b])
    for rho in (-0.7, 0.2, 0.95):
        wanted = corner(rho, 1, 1) - corner(rho, -1, 1) - corner(rho, 1, -1) + corner(rho, -1, -1)
        value = pair(inside, inside, 1.0, 1.0, rho, kinks=(-1.0, 1.0))
        np.testing.assert_allclose(value, wanted, rtol=1e-7)


@pytest.mark.parametrize(
    ("g", "kinks"),
    [(lambda h: relu(h + 0.5), (-0.5,)), (jax.nn.silu, ())]
    + FULL * [(lambda h: jnp.clip(h, -0.5, 2.0), (-0.5, 2.0))],
)
def test_the_symmetric_path_equals_the_general_one(g, kinks):
    """One function of two equal variances is integrated over half of the plane."""
    twin = lambda h: g(h)

    @jax.jit
    def both(v, cov):
        even = gaussian.pair_expectation(g, g, v, v, cov, kinks=kinks)
        return even, gaussian.pair_expectation(g, twin, v, v + 0, cov, kinks=kinks)

    v = jnp.full_like(RHOS, 1.7)
    even, general = both(v, v * RHOS)
    np.testing.assert_allclose(even, general, rtol=1e-12, atol=1e-13)
    # At correlations of one the pair is a single variable.
    both_ways = tuple(s * k for k in kinks for s in (1, -1))
    for sign, value in ((-1, even[0]), (1, even[-1])):
        product = gaussian.expectation(lambda h, s=sign: g(h) * g(s * h), 1.7, kinks=both_ways)
        np.testing.assert_allclose(value, product, rtol=1e-13)


def test_pair_derivatives_obey_prices_theorem():
    """In the covariance E g1' g2'; in a variance by central differences."""
    late, later = (lambda h: relu(h - 0.5)), (lambda h: step(h - 0.5))
    # With three kinks the program is ten times as large.
    first, its_slope, cuts = (
        (hard_tanh, inside, (-1.0, 0.5, 1.0)) if FULL else (late, later, (0.5,))
    )
    value = jax.jit(lambda args: gaussian.pair_expectation(first, late, *args, kinks=cuts))
    point = jnp.array([0.8, 1.5, 0.4])
    slope = jax.jit(jax.jacfwd(value))(point)
    product = pair(its_slope, later, *point, kinks=cuts)
    np.testing.assert_allclose(slope[2], product, rtol=1e-12)
    for axis in range(2):
        shift = 1e-5 * jnp.eye(3)[axis]
        central = (value(point + shift) - value(point - shift)) / 2e-5
        np.testing.assert_allclose(slope[axis], central, rtol=1e-8, atol=1e-10)


SMOOTH = {
    "tanh": (jnp.tanh, np.tanh),
    "sigmoid": (jax.nn.sigmoid, special.expit),
    "gelu": (lambda h: h * jax.scipy.stats.norm.cdf(h), lambda h: h * special.ndtr(h)),
    "silu": (jax.nn.silu, lambda h: h * special.expit(h)),
    "mish": (jax.nn.mish, lambda h: h * np.tanh(np.logaddexp(0, h))),
    "softplus": (jax.nn.softplus, lambda h: np.logaddexp(0, h)),
}


def conditional(g, std1, std2, rho):
    """E g(u) E[g(v) | u] on panels of 20 nodes, halved towards where an argument is zero."""
    x, w = np.polynomial.legendre.leggauss(20)
    half = np.array([0, *(20 * 0.5 ** np.arange(29.0, -1, -1))])
    edges = np.array([*-half[:0:-1], *half])

    def line(centre):
        steady = np.broadcast_to(np.arange(-9.0, 10), (*centre.shape, 19))
        graded = np.clip(centre[..., None] + edges, -9, 9)
        ends = np.sort(np.concatenate([steady, graded], axis=-1))
        middle, radius = (ends[..., 1:] + ends[..., :-1]) / 2, np.diff(ends) / 2
        z = middle[..., None] + radius[..., None] * x
        return z, radius[..., None] * w * stats.norm.pdf(z)

    z, outer = line(np.zeros(()))
    rest = np.sqrt((1 - rho) * (1 + rho))
    e, inner = line(-rho * z / rest)
    v = std2 * (rho * z[..., None, None] + rest * e)
    return np.sum(outer * g(std1 * z) * np.sum(inner * g(v), axis=(-2, -1)))


@pytest.mark.parametrize("name", SMOOTH)
def test_pair_expectation_of_steep_smooth_functions(name):
    """To 1e-12 of the root mean squares for variances of 1e-3 to 1e4, beside another route."""
    g, plain = SMOOTH[name]
    v1 = np.array([1e-3, 1.0, 30.0, 1e3, 1e4, 1e4, 1e4, 1e-3])
    v2 = np.array([1e-3, 1.0, 30.0, 1e3, 1e4, 1e4, 1.0, 1e4])
    rho = np.array([-0.9, 0.5, -0.3, 0.9, 0.2, 1 - 1e-6, 0.6, -0.7])
    value = pair(g, g, v1, v2, rho * np.sqrt(v1 * v2))
    wanted = [conditional(plain, *row) for row in zip(np.sqrt(v1), np.sqrt(v2), rho, strict=True)]
    sizes = [np.sqrt(gaussian.expectation(lambda h: g(h) ** 2, v)) for v in (v1, v2)]
    np.testing.assert_array_less(np.abs(value - np.array(wanted)), 1e-12 * sizes[0] * sizes[1])


OSCILLATING = {
    "sin": (jnp.sin, lambda v, c: np.exp(-v) * np.sinh(c), lambda v: (1 - np.exp(-2 * v)) / 2),
    "cos": (jnp.cos, lambda v, c: np.exp(-v) * np.cosh(c), lambda v: (1 + np.exp(-2 * v)) / 2),
    "exp": (jnp.exp, lambda v, c: np.exp(v + c), lambda v: np.exp(2 * v)),
}


@pytest.mark.parametrize("name", OSCILLATING)
def test_pair_expectation_of_functions_that_go_on_oscillating_or_growing(name):
    """To 1e-12 of the mean squares up to a variance of 36, by the gentle rule and the steep one."""
    g, wanted, size = OSCILLATING[name]
    rho = np.array([-1.0, -0.9, 0.0, 0.5, 0.99, 1.0])
    for largest in (6.2, 36.0):
        v = np.repeat([[0.5], [4.0], [largest]], rho.size, axis=1)
        value = pair(g, g, v, v, rho * v)
        np.testing.assert_array_less(np.abs(value - wanted(v, rho * v)), 1e-12 * size(v))


def test_pair_growth_is_reported():
    """The integral of exp(a (u^2 + v^2)) diverges at a correlation of one for a of one quarter."""
    for a, wanted in ((0.26, np.inf), (0.1, 0.6**-0.5), (1.0, np.inf)):
        g = lambda h, a=a: jnp.exp(a * h * h)
        np.testing.assert_allclose(gaussian.pair_expectation(g, g, 1.0, 1.0, 1.0), wanted)
    value = gaussian.pair_expectation(jnp.exp, jnp.exp, 2.0, 2.0, 1.0)
    np.testing.assert_allclose(value, np.exp(3.0), rtol=1e-12)


def test_blocks_change_nothing():
    """More points than fit into one block, gentle and steep ones among them."""
    v = jnp.logspace(-2, 4, gaussian._BLOCK + 3)
    value = pair(jnp.tanh, jnp.tanh, v, v, v / 2)
    some = jnp.array([0, 300, 900, gaussian._BLOCK + 2])
    few = pair(jnp.tanh, jnp.tanh, v[some], v[some], v[some] / 2)
    np.testing.assert_allclose(value[some], few, rtol=1e-12)


def test_batches_under_vmap_and_arrays_agree():
    v = jnp.linspace(0.1, 3, 7)
    mean = lambda x: gaussian.expectation(relu, x, kinks=(0.0,))
    mapped = jax.jit(jax.vmap(mean))(v)
    np.testing.assert_allclose(mean(v), mapped, rtol=1e-14)
    np.testing.assert_allclose(mean(v.reshape(1, 7))[0], mapped, rtol=1e-14)


@pytest.mark.usefixtures("float32")
def test_float32_has_its_own_precision_and_range():
    value = gaussian.expectation(relu, 2.0, kinks=(0.0,))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.pi**-0.5, rtol=1e-6)
    assert gaussian.expectation(lambda h: jnp.exp(h * h)) == jnp.inf
    value = gaussian.pair_expectation(step, step, 1.0, 1.0, 0.5, kinks=(0.0,))
    np.testing.assert_allclose(value, 1 / 3, rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="var must be zero or more, as a variance is; got -1"):
        gaussian.expectation(jnp.cos, -1.0)
    with pytest.raises(ValueError, match=r"cov must be at most sqrt\(var1 \* var2\) = 2.0 in size"):
        gaussian.pair_expectation(relu, relu, 1.0, 4.0, 2.1)
    with pytest.raises(ValueError, match=r"kinks of g must be finite; got \(inf,\)"):
        gaussian.expectation(jnp.abs, kinks=(jnp.inf,))
    with pytest.raises(TypeError, match="g must map a scalar to a scalar; it returned"):
        gaussian.expectation(lambda h: jnp.stack([h, h]))
    with pytest.raises(
        TypeError, match="g must return real floating-point numbers; it returned int"
    ):
        gaussian.expectation(lambda h: jnp.sign(h).astype(int))
    with pytest.raises(TypeError, match="it returned complex128"):
        gaussian.expectation(lambda h: jax.lax.complex(h, h))
