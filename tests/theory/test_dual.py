"""Moments, dual kernels and Hermite coefficients against the facts and against each other."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.networks import activations
from dltheory.numerics import gaussian
from dltheory.theory import dual, self_normalization
from tests.facts import FACTS, assert_agrees
from tests.tier import FULL

QS = jnp.array([0.25, 0.7, 1.0, 2.0, 4.0])
RHOS = jnp.array([-1.0, -0.3, 0.0, 0.5, 0.9, 1.0])
NUMERIC = [i for i in FACTS if i.startswith("act.") and not i.endswith(".qual")]


def activation(name):
    if name.startswith("leaky_relu_"):
        return activations.leaky_relu(float(name.removeprefix("leaky_relu_")))
    return activations.get(name)


@cache
def integrals(name):
    """Means of phi and phi', mean squares of phi, phi' and phi'', one compilation for all."""
    phi = activation(name)

    @jax.jit
    def all_of_them(q):
        means = [gaussian.expectation(g, q, kinks=phi.kinks) for g in (phi, jax.grad(phi))]
        squares = [f(phi, q) for f in (dual.moment, dual.derivative_moment, dual.curvature_moment)]
        return dict(zip(("m1", "d1", "m2", "d2", "dd2"), means + squares, strict=True))

    return {key: np.asarray(value) for key, value in all_of_them(QS).items()}


def integral(name, key, q=1.0):
    return integrals(name)[key][int(jnp.argmin(jnp.abs(QS - float(q))))]


def gain(name, key):
    value = integral(name, {"fwd_gain": "m2", "bwd_gain": "d2", "var_gain": "m2"}[key])
    return (value - integral(name, "m1") ** 2 * (key == "var_gain")) ** -0.5


# The pattern of an id, and what to call with its groups and the fact's inputs.
TABLE = [
    (r"act\.(.+)\.(m1|m2|d1|d2|dd2)", integral),
    (r"act\.(.+)\.(m2|d2)\.q(.+)", integral),
    (r"act\.(gelu|erf|elu)\.(m2|d2)\.closed", integral),
    (r"act\.(.+)\.(fwd_gain|bwd_gain|var_gain)", gain),
    (r"act\.(.+)\.lipschitz", lambda name: activation(name).lipschitz),
    (r"act\.(gelu|gelu_tanh|mish|silu)\.min", lambda name: activation(name).range[0]),
    (r"act\.(gelu|silu)\.min_slope", lambda name: 1 - activation(name).lipschitz),
    (
        r"act\.(.+)\.dual\.(-?[0-9.]+)",
        lambda n, rho: dual.kernel(activation(n), 1.0, 1.0, float(rho)),
    ),
    (r"act\.(gelu)\.dual\.general_q", lambda n, q, c: dual.kernel(n, q, q, c)),
    (r"act\.(.+)\.hermite", lambda n, orders: dual.hermite_coefficients(n, orders)),
    (r"act\.selu\.chi", lambda: integral("selu", "d2")),
    (r"act\.selu\.lambda", lambda: self_normalization.self_normalizing("elu").scale),
    (r"act\.selu\.alpha", lambda: self_normalization.self_normalizing("elu").alpha),
    (
        r"act\.selu\.fixed_point_jacobian",
        lambda: self_normalization.gaussian_fixed_point("selu").jacobian,
    ),
]
CALLS = {
    i: (call, match.groups())
    for i in NUMERIC
    for pattern, call in TABLE
    if (match := re.fullmatch(pattern, i))
}
# Not a public function of the project: where an extremum lies, bounds of second derivatives, the
# largest gap between the two GELUs. The initialisers' own tests cover the truncated normal.
UNCOVERED = {
    "act.gelu.argmin",
    "act.silu.argmin",
    "act.mish.lipschitz_argmax",
    "act.gelu.second_derivative_max",
    "act.tanh.second_derivative_max",
    "act.sigmoid.second_derivative_max",
    "act.gelu_tanh.max_abs_error",
    "act.init.truncnorm_std",
}


def inputs(fact_id):
    """The inputs of a fact that its id does not name."""
    given = FACTS[fact_id]["inputs"]
    if fact_id.endswith(".closed"):
        return {"q": given["q"]}
    if fact_id.endswith(".hermite"):
        return {"orders": len(FACTS[fact_id]["value"])}
    return {"q": given["q"], "c": given["c"]} if fact_id.endswith("general_q") else {}


@pytest.mark.parametrize("fact_id", CALLS)
def test_agrees_with_the_facts(fact_id):
    call, groups = CALLS[fact_id]
    measured = call(*groups, **inputs(fact_id))
    if np.all(np.asarray(FACTS[fact_id]["value"], float) == np.inf):
        assert measured == np.inf
    else:
        assert_agrees(fact_id, measured)


def test_the_facts_are_covered():
    assert set(NUMERIC) - set(CALLS) <= UNCOVERED
    assert len(CALLS) >= 0.95 * len(NUMERIC)


@pytest.mark.parametrize("name", ["leaky_relu", "relu2", "step", "erf", "gelu", "cos"])
def test_closed_forms_equal_quadrature(name):
    """The same function without its name and its degree goes through the integrals."""
    phi = activations.get(name)
    bare = activations.Activation("bare", lambda h: phi(h), phi.kinks, phi.smoothness)
    q1, q2 = 0.8, jnp.repeat(jnp.array([0.8, 2.0]), RHOS.size)
    cov = jnp.tile(RHOS, 2) * jnp.sqrt(q1 * q2)
    kernels = jax.jit(lambda f, g: (f(q1, q2, cov), g(q1, q2, cov)), static_argnums=(0, 1))

    def both(phi):
        f = lambda *args: dual.kernel(phi, *args)
        g = lambda *args: dual.derivative_kernel(phi, *args)
        return kernels(f, g)

    for closed, integrated in zip(both(phi), both(bare), strict=True):
        finite = np.isfinite(closed)
        np.testing.assert_array_equal(finite, np.isfinite(integrated))
        np.testing.assert_allclose(closed[finite], integrated[finite], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dual.moment(phi, QS), dual.moment(bare, QS), rtol=1e-13)
    np.testing.assert_allclose(
        dual.derivative_moment(phi, QS), dual.derivative_moment(bare, QS), rtol=1e-13
    )


@pytest.mark.parametrize("name", ["relu", *["hard_tanh"] * FULL])
def test_the_kernel_is_differentiable_up_to_correlation_one(name):
    """Its slope at one is the mean square of the derivative; inside, finite differences."""
    kernel = jax.jit(lambda q1, q2, cov: dual.kernel(name, q1, q2, cov))
    slopes = jax.jit(jax.jacfwd(lambda args: dual.kernel(name, *args)))
    total = slopes(jnp.full(3, 1.3))
    np.testing.assert_allclose(total[2], dual.derivative_moment(name, 1.3), rtol=1e-12)
    along = jax.grad(lambda q: dual.moment(name, q))(1.3)
    np.testing.assert_allclose(jnp.sum(total), along, rtol=1e-11)
    step, point = 1e-5, jnp.array([0.9, 1.4, 0.6])
    for axis, slope in enumerate(slopes(point)):
        shift = step * jnp.eye(3)[axis]
        central = (kernel(*(point + shift)) - kernel(*(point - shift))) / (2 * step)
        np.testing.assert_allclose(slope, central, rtol=1e-8, atol=1e-9)


def test_hermite_coefficients_sum_to_the_kernel():
    """Partial sums of the Mehler series; at a correlation of 0.3 sixteen orders are enough."""
    for name in ("hard_tanh", "silu"):
        a = dual.hermite_coefficients(name, 24)
        kernel = dual.kernel(name, 1.0, 1.0, 0.3)
        np.testing.assert_allclose(jnp.polyval(a[::-1] ** 2, 0.3), kernel, rtol=1e-12)


def test_jumps_and_kinks_give_infinite_moments():
    assert dual.derivative_moment("step") == jnp.inf
    assert dual.derivative_kernel("step", 1.0, 1.0, 1.0) == jnp.inf
    np.testing.assert_allclose(
        dual.derivative_kernel("step", 1.0, 1.0, 0.5), 1 / (2 * np.pi * np.sqrt(0.75)), rtol=1e-12
    )
    for name in ("relu", "step", "hard_tanh", "elu", "relu2", "tanh"):
        phi = activations.get(name)
        assert (dual.curvature_moment(phi) == jnp.inf) == (phi.smoothness < 1), name
    grows = lambda h: jnp.exp(h * h)
    for measure in (dual.moment, dual.derivative_moment, dual.curvature_moment):
        assert measure(grows) == jnp.inf
    assert dual.kernel(grows, 1.0, 1.0, 0.5) == jnp.inf


def test_a_bare_callable_is_integrated_with_its_kinks():
    clipped = lambda h: jnp.minimum(jnp.abs(h), 1)
    kinked = activations.get(clipped, kinks=(-1.0, 0.0, 1.0))
    assert dual.moment(clipped) == dual.moment(kinked)
    np.testing.assert_allclose(dual.moment(clipped), dual.moment("hard_tanh"), rtol=1e-14)


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    for value in (dual.kernel("tanh", 1.0, 1.0, 0.5), dual.hermite_coefficients("tanh", 2)[1]):
        assert value.dtype == jnp.float32
    np.testing.assert_allclose(dual.hermite_coefficients("tanh", 2)[1], 0.6057055, rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match=r"var1 must be zero or more, as a variance is; got -1.0"):
        dual.kernel("relu", -1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"cov must be at most sqrt\(var1 \* var2\) = 1.0 in size"):
        dual.kernel("tanh", 1.0, 1.0, 1.5)
    with pytest.raises(ValueError, match=r"n must be an integer of one or more; got 0"):
        dual.hermite_coefficients("relu", 0)
    two = [lambda phi, f=f: f(phi, 1.0, 1.0, 0.5) for f in (dual.kernel, dual.derivative_kernel)]
    series = lambda phi: dual.hermite_coefficients(phi, 3)
    for measure in (dual.moment, dual.derivative_moment, dual.curvature_moment, *two, series):
        with pytest.raises(ValueError, match="must be a number everywhere; it is NaN at -16"):
            measure(jnp.sqrt)
        with pytest.raises(TypeError, match="fn must map a scalar to a scalar; it returned"):
            measure(lambda h: jnp.stack([h, h]))
        with pytest.raises(TypeError, match=r"fn must return real floating-point .* int64"):
            measure(lambda h: jnp.sign(h).astype(jnp.int64))
        with pytest.raises(TypeError, match="it returned complex128"):
            measure(lambda h: jax.lax.complex(h, h))
    assert jnp.isnan(jax.jit(lambda c: dual.kernel("relu", 1.0, 1.0, c))(1.5))
