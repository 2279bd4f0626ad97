"""The edge of chaos of every activation of the catalogue, and why some have none."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from dltheory.networks import activations
from dltheory.theory import fixed_points, mean_field
from tests.tier import cases

BIASES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.2, 0.5, 1.0)
# A kink, and a smallest bias variance: the first two stand for all in the quick tier.
NAMES = sorted(activations.names(), key=lambda name: name not in ("hard_tanh", "mish"))
ONLY_WITHOUT_BIAS = {"relu", "leaky_relu", "prelu", "abs", "identity"}
NEVER = {"relu2", "softplus", "squareplus", "log_sigmoid", "step"}
SMALLEST = {
    "gelu": 0.17292239,
    "gelu_tanh": 0.17289520,
    "hard_swish": 0.50714586,
    "mish": 0.09452179,
    "silu": 0.55514317,
}


def by_a_dense_sum(phi, q):
    """Where chi_1 is one: weight variance, bias variance, and the slope of the length map."""
    edges = np.clip([-12, *np.asarray(phi.kinks) / np.sqrt(q), 12], -12, 12)
    share = (np.arange(8000) + 0.5) / 8000
    z = (edges[:-1, None] + np.diff(edges)[:, None] * share).ravel()
    weights = np.repeat(np.diff(edges) / 8000, 8000) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    h = np.sqrt(q) * z
    f, g = np.asarray(phi(h)), np.asarray(jax.vmap(jax.grad(phi))(jnp.asarray(h)))
    weight_var = 1 / (weights @ g**2)
    return weight_var, q - weight_var * (weights @ f**2), weight_var * (weights @ (h * f * g)) / q


@pytest.mark.parametrize("name", NAMES[: cases(len(NAMES))])
def test_every_activation_has_the_edge_that_it_has(name):
    phi = activations.get(name)
    found = jax.jit(lambda b: mean_field.edge_of_chaos(name, bias_var=b))(jnp.array(BIASES))
    known = ~np.isnan(np.asarray(found.weight_var))
    for bias_var, weight_var, q, has in zip(BIASES, *found, known, strict=True):
        if name in ONLY_WITHOUT_BIAS | NEVER:
            wanted = name not in NEVER and bias_var == 0
        else:
            wanted = bias_var >= SMALLEST.get(name, 0)
        assert has == wanted, (name, bias_var)
        if has and q > 0:
            weight, bias, slope = by_a_dense_sum(phi, float(q))
            np.testing.assert_allclose(weight, weight_var, rtol=1e-5)
            np.testing.assert_allclose(bias, bias_var, atol=1e-5 * q)
            assert slope < 1


@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_below_the_smallest_bias_critical_lengths_are_unstable(name):
    """The smallest belongs to the length at which the slope of the length map is one."""
    phi = activations.get(name)
    q = optimize.brentq(lambda q: by_a_dense_sum(phi, q)[2] - 1, 1, 50, xtol=1e-6)
    np.testing.assert_allclose(by_a_dense_sum(phi, q)[1], SMALLEST[name], rtol=1e-7)
    assert by_a_dense_sum(phi, 0.9 * q)[2] > 1 > by_a_dense_sum(phi, 1.1 * q)[2]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("relu", "each layer adds bias_var to the length; want bias_var = 0"),
        ("step", "it jumps, and chi_1 is infinite at every weight_var"),
        ("gelu", "unstable (dq'/dq > 1) or above 1e+06; want bias_var between 0.1729 and 112.5"),
        ("relu2", "fixed lengths are unstable (dq'/dq > 1) at every bias_var"),
        ("softplus", "lengths grow without bound at every bias_var"),
    ][: cases(30)],
)
def test_it_says_why_there_is_none(name, reason):
    text = f"{name} has no stable edge of chaos at bias_var = 0.1: "
    refuse = lambda: mean_field.edge_of_chaos(name, bias_var=0.1)
    if name not in ("relu", "step"):  # outside of jit the search takes seconds
        phi = activations.get(name)
        refuse = lambda: fixed_points.refuse_uncritical(phi, jnp.asarray(jnp.nan), 0.1)
    with pytest.raises(ValueError, match=re.escape(text) + ".*" + re.escape(reason)):
        refuse()


@pytest.mark.usefixtures("float32")
def test_rounding_makes_no_edge_in_float32():
    """Moments of large lengths have few digits, and their difference has none."""
    assert jnp.isnan(jax.jit(lambda b: mean_field.edge_of_chaos("gelu", bias_var=b))(0.1).q)
