"""Correlations of gradients against the facts, mpmath, wide networks, and published rates."""

import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from dltheory.networks import activations
from dltheory.theory import dual, mean_field, shattering
from tests.facts import FACTS, assert_agrees


@jax.jit
def relu(c0):
    return shattering.gradient_correlation("relu", 1.0, c0, depth=8000, weight_var=2.0)


def relu_by_mpmath(c0, depths):
    with mpmath.workdps(30):
        c, logs = mpmath.mpf(c0), [mpmath.mpf(0)]
        for _ in range(max(depths)):
            angle = mpmath.pi - mpmath.acos(c)
            logs.append(logs[-1] + mpmath.log(angle / mpmath.pi))
            c = (mpmath.sqrt(1 - c * c) + c * angle) / mpmath.pi
        return np.array([float(mpmath.exp(logs[depth])) for depth in depths])


@pytest.mark.parametrize("name", [n for n in FACTS if n.startswith("js.shatter.0")])
def test_agrees_with_the_facts(name):
    given = FACTS[name]["inputs"]
    assert_agrees(name, relu(given["c0"])[given["L"] - 1])


def test_relu_gradients_decorrelate_like_the_third_power():
    """The fact names no input correlation; its digits are those of 0.3 (orthogonal: 2.991749)."""
    found = relu(0.3)
    assert_agrees("js.shatter.rate", np.log2(found[3999] / found[7999]))
    for c0 in (0.0, 0.3, -0.9):
        wanted = relu_by_mpmath(c0, (1, 10, 1000))
        np.testing.assert_allclose(relu(c0)[np.array([0, 9, 999])], wanted, rtol=1e-9)
    # The fact's other reading, and the limit.
    np.testing.assert_allclose(np.log2(relu(0.0)[3999] / relu(0.0)[7999]), 2.991749, rtol=1e-6)


def test_smooth_gradients_decorrelate_like_the_second_power():
    weight_var, q = jax.jit(lambda b: mean_field.edge_of_chaos("erf", bias_var=b))(0.1)
    at = {"depth": 3000, "weight_var": weight_var, "bias_var": 0.1}
    found = shattering.gradient_correlation("erf", q, 0.2, **at)
    assert abs(np.log2(found[1499] / found[2999]) - 2) < 0.02


def test_it_is_the_slope_of_the_correlation():
    """At a fixed length a layer multiplies both by the slope of the correlation map."""
    q, weight_var = 0.7, 1 / dual.derivative_moment("erf", 0.7)
    bias_var = q - mean_field.q_map("erf", q, weight_var=weight_var)
    at = {"depth": 6, "weight_var": weight_var, "bias_var": bias_var}
    found = shattering.gradient_correlation("erf", q, 0.3, **at)
    signal = lambda c0: mean_field.propagate("erf", q, c0, **at).c
    np.testing.assert_allclose(jax.jacfwd(signal)(0.3)[1:], found[:-1], rtol=1e-12)


@pytest.mark.parametrize("branch", [None, 0.5])
def test_wide_networks_have_it(branch):
    """One network of width 1500 with another slope than ReLU's, and biases: to a few per cent."""
    rng, n, depth, c0, q0 = np.random.default_rng(0), 1500, 3, 0.4, 1.5
    weight_var, bias_var, slope = 1.6, 0.2, 0.2
    phi = activations.leaky_relu(slope)
    h = np.sqrt(q0) * rng.normal(size=(n, 2)) @ np.linalg.cholesky([[1, c0], [c0, 1]]).T
    layers = []
    for _ in range(depth):
        weights = rng.normal(0, np.sqrt(weight_var / n), (n, n))
        gates = np.where(h > 0, 1, slope)
        layers.append((weights, gates))
        new = weights @ (gates * h) + rng.normal(0, np.sqrt(bias_var), (n, 1))
        h = new if branch is None else h + branch * new
    found = []
    for start in range(depth):
        gradient = np.repeat(rng.normal(size=(n, 1)), 2, axis=1)
        for weights, gates in layers[start::-1]:
            back = gates * (weights.T @ gradient)
            gradient = back if branch is None else gradient + branch * back
        found.append(np.dot(*gradient.T) / np.prod(np.linalg.norm(gradient, axis=0)))
    wanted = shattering.gradient_correlation(
        phi, q0, c0, depth=depth, weight_var=weight_var, bias_var=bias_var, branch=branch
    )
    np.testing.assert_allclose(found, wanted, rtol=4 / np.sqrt(n))


def test_residual_relu_networks_by_arc_cosines():
    """The branch adds twice its squared factor of a ReLU's kernel to the identity's."""
    c, share, wanted = 0.1, 2 * 0.7**2 / 2, []
    for _ in range(8):
        angle = np.arccos(c)
        wanted.append((1 + share * (1 - angle / np.pi)) / (1 + share))
        kernel = (np.sin(angle) + c * (np.pi - angle)) / np.pi
        c = (c + share * kernel) / (1 + share)
    found = shattering.gradient_correlation("relu", 3.0, 0.1, depth=8, weight_var=2.0, branch=0.7)
    np.testing.assert_allclose(found, np.cumprod(wanted), rtol=1e-12)


def test_independent_gates():
    depths = np.arange(1, 6)
    at = {"depth": 5, "weight_var": 2.0}
    plain = shattering.independent_gates("relu", 1.0, **at)
    np.testing.assert_allclose(plain, 0.5**depths, rtol=1e-14)
    skip = shattering.independent_gates("relu", 1.0, branch=1.0, **at)
    np.testing.assert_allclose(skip, 0.75**depths, rtol=1e-14)
    # They are right where gates are independent: at the first layer, for orthogonal inputs.
    true = shattering.gradient_correlation("relu", 1.0, 0.0, branch=1.0, **at)
    np.testing.assert_allclose(true[0], 0.75, rtol=1e-14)
    assert (true[1:] > skip[1:]).all()


def test_equal_inputs_have_equal_gradients():
    at = {"depth": 4, "weight_var": 1.3, "bias_var": 0.1}
    np.testing.assert_array_equal(shattering.gradient_correlation("erf", 1.0, 1.0, **at), 1)


def test_bad_input():
    at = {"depth": 2, "weight_var": 1.0}
    for q0, c0, change, error, text in (
        (1.0, 0.0, {"depth": 0}, ValueError, "depth is 0; want a positive integer"),
        (1.0, 0.0, {"weight_var": -1.0}, ValueError, "weight_var must be zero or more; got -1.0"),
        (-1.0, 0.0, {}, ValueError, "q0 must be zero or more; got -1.0"),
        (1.0, 1.5, {}, ValueError, "cov must be at most sqrt(var1 * var2) = 1.0 in size; got 1.5"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            shattering.gradient_correlation("relu", q0, c0, **{**at, **change})
    with pytest.raises(ValueError, match="step jumps, and has no gradient; want a continuous"):
        shattering.independent_gates("step", 1.0, **at)
    traced = jax.jit(lambda c: shattering.gradient_correlation("relu", 1.0, c, **at))
    assert jnp.isnan(traced(1.5)).all()


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    found = shattering.gradient_correlation("relu", 1.0, 0.0, depth=3, weight_var=2.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, relu_by_mpmath(0, (1, 2, 3)), rtol=1e-5)
