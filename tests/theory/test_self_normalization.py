"""Gains and fixed points against closed forms and against iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.numerics import gaussian
from dltheory.theory import self_normalization


def test_gains():
    q = jnp.array([1.0, 4.0])
    forward, backward = self_normalization.gains("relu", q)
    np.testing.assert_allclose(forward, jnp.sqrt(2 / q), rtol=1e-14)
    np.testing.assert_allclose(backward, jnp.sqrt(2.0) * jnp.ones(2), rtol=1e-14)
    assert self_normalization.gains("step").backward == 0


def test_selu_is_the_self_normalizing_elu():
    """Its constants to the digits that the function itself carries."""
    alpha, scale = self_normalization.self_normalizing("elu")
    np.testing.assert_allclose(scale, 1.0507009873554804934193349852946, rtol=1e-13)
    np.testing.assert_allclose(alpha, 1.6732632423543772848170429916717, rtol=1e-13)
    point = self_normalization.gaussian_fixed_point("selu")
    np.testing.assert_allclose([point.mean, point.var], [0, 1], atol=1e-13)
    assert point.stable


@pytest.mark.parametrize("name", ["tanh", "identity"])
def test_constants_make_the_unit_fixed_point(name):
    """An odd function needs no factor on one side."""
    alpha, scale = self_normalization.self_normalizing(name)
    phi = {"tanh": jnp.tanh, "identity": lambda h: h}[name]
    np.testing.assert_allclose(alpha, 1, rtol=1e-13)
    np.testing.assert_allclose(
        scale**2 * gaussian.expectation(lambda h: phi(h) ** 2), 1, rtol=1e-13
    )


def test_the_fixed_point_is_where_iteration_leads():
    phi = lambda h: 1.3 * jnp.tanh(h) + 0.1 * jax.nn.softplus(h)
    point = self_normalization.gaussian_fixed_point(phi, weight_var=1.2)
    assert point.stable

    @jax.jit
    def layer(state):
        h = lambda g: gaussian.expectation(g, 1.2 * state[1])
        mean = h(phi)
        return jnp.stack([mean, h(lambda z: phi(z) ** 2) - mean**2])

    found = jnp.array([3.0, 2.0])
    for _ in range(200):
        found = layer(found)
    np.testing.assert_allclose([point.mean, point.var], found, rtol=1e-12)
    jacobian = jax.jacfwd(layer)(found)
    np.testing.assert_allclose(point.jacobian, jacobian, rtol=1e-10)


def test_no_fixed_point_is_nan():
    assert jnp.isnan(self_normalization.gaussian_fixed_point("relu2", weight_var=0.0).var)
    assert jnp.isnan(self_normalization.gaussian_fixed_point("identity").var)


def test_the_fixed_point_is_differentiable_in_both_modes():
    var = lambda weight_var: (
        self_normalization.gaussian_fixed_point("selu", weight_var=weight_var).var
    )
    h = 1e-4
    wanted = (var(1.0 + h) - var(1.0 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(var)(1.0), wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(var)(1.0), wanted, rtol=1e-6)
